//! A tenant under test: connects to its node and does what the node says, one command per line, one answer per line.
//! Built on its own (static, standard library only), not a part of the crate.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn signal(number: i32, handler: usize) -> usize;
    fn _exit(code: i32) -> !;
}

extern "C" fn leave(_: i32) {
    unsafe { _exit(3) }
}

fn status(key: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
}

fn error<T>(outcome: std::io::Result<T>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |code| code.to_string()),
    }
}

fn answer(words: &[&str]) -> String {
    match words {
        ["status", key] => status(key),
        ["pid"] => std::process::id().to_string(),
        ["interfaces"] => {
            let list = fs::read_to_string("/proc/net/dev").unwrap_or_default();
            list.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect::<Vec<_>>().join(",")
        }
        ["env", name] => std::env::var(name).unwrap_or_else(|_| "none".to_owned()),
        ["hostname"] => fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        ["cwd"] => std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default(),
        ["args"] => std::env::args().skip(1).collect::<Vec<_>>().join(","),
        ["write", path] => error(fs::write(path, "x")),
        ["read", path] => error(fs::read(path)),
        ["descriptors"] => fs::read_dir("/proc/self/fd").map(|list| list.count().to_string()).unwrap_or_default(),
        ["try", numbers @ ..] => {
            let mut arguments: Vec<i64> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
            arguments.resize(7, 0);
            let a = &arguments;
            let result = unsafe { syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]) };
            if result == -1 { std::io::Error::last_os_error().raw_os_error().unwrap_or(0).to_string() } else { "ok".to_owned() }
        }
        ["eat", mebibytes] => {
            let wanted: usize = mebibytes.parse().unwrap_or(0);
            let mut eaten: Vec<Vec<u8>> = Vec::new();
            for _ in 0..wanted {
                eaten.push(std::hint::black_box(vec![1; 1 << 20]));
            }
            eaten.len().to_string()
        }
        ["threads", count] => {
            let wanted: usize = count.parse().unwrap_or(0);
            let mut made = 0;
            for _ in 0..wanted {
                if std::thread::Builder::new().stack_size(64 << 10).spawn(|| std::thread::sleep(Duration::from_secs(600))).is_err() {
                    break;
                }
                made += 1;
            }
            made.to_string()
        }
        ["spin", milliseconds] => {
            let until = Instant::now() + Duration::from_millis(milliseconds.parse().unwrap_or(0));
            let mut turns: u64 = 0;
            while Instant::now() < until {
                turns = std::hint::black_box(turns + 1);
            }
            "ok".to_owned()
        }
        ["log", kibibytes] => {
            let line = [b'x'; 1024];
            let mut out = std::io::stdout();
            let wanted: usize = kibibytes.parse().unwrap_or(0);
            (0..wanted).find_map(|_| out.write_all(&line).and_then(|()| out.flush()).err()).map_or_else(|| "ok".to_owned(), |e| error::<()>(Err(e)))
        }
        // SIGTERM
        ["polite"] => {
            unsafe { signal(15, leave as extern "C" fn(i32) as usize) };
            "ok".to_owned()
        }
        ["exit", code] => std::process::exit(code.parse().unwrap_or(99)),
        _ => "what?".to_owned(),
    }
}

fn main() {
    println!("tenant begins");
    let mut stream = UnixStream::connect("/run/antirio/node.sock").expect("the node listens");
    writeln!(stream, "hello {}", std::env::var("NAME").unwrap_or_default()).expect("hello");
    let commands = BufReader::new(stream.try_clone().expect("clone"));
    for command in commands.lines() {
        let Ok(command) = command else { break };
        let words: Vec<&str> = command.split_whitespace().collect();
        writeln!(stream, "{}", answer(&words)).expect("answer");
    }
}
