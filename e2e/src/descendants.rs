//! Processes below a process, by what the kernel says: containers of the embedded engine are such processes of their node.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// SIGKILL for every process below `ancestor` whose program is `program` (the kernel keeps its first 15 bytes, proc_pid_stat(5)); how many.
///
/// # Errors
/// `/proc` cannot be listed.
pub fn kill(ancestor: u32, program: &str) -> std::io::Result<usize> {
    let processes = list()?;
    let name = &program[..program.len().min(15)];
    let is_below = |mut pid: u32| {
        // The chain of parents ends at 0; a table read while processes come and go has no longer chain than it has entries.
        for _ in 0..processes.len() {
            match processes.get(&pid) {
                Some(process) if process.parent == ancestor => return true,
                Some(process) => pid = process.parent,
                None => return false,
            }
        }
        false
    };
    let found = processes.iter().filter(|(pid, process)| process.name == name && is_below(**pid));
    let mut killed = 0;
    for pid in found.filter_map(|(pid, _)| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        killed += usize::from(kill_process(pid, Signal::KILL).is_ok());
    }
    Ok(killed)
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    name: String,
    parent: u32,
}

fn list() -> std::io::Result<BTreeMap<u32, Process>> {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may be gone by now.
        let Ok(stat) = std::fs::read_to_string(Path::new("/proc").join(format!("{pid}/stat"))) else { continue };
        processes.extend(parse(&stat).map(|process| (pid, process)));
    }
    Ok(processes)
}

/// `pid (name) state parent ...`, where the name may hold anything, also parentheses.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let parent = tail.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Process { name: name.to_owned(), parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        assert_eq!(parse("7 (a) b (c) S 3 7 7 0"), Some(Process { name: "a) b (c".to_owned(), parent: 3 }));
        assert_eq!(parse("7 (x) S"), None);
    }

    #[test]
    fn only_named_descendants_are_killed() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert_eq!(kill(std::process::id(), "no-such-program").unwrap(), 0);
        assert_eq!(kill(child.id(), "sleep").unwrap(), 0, "it is not below itself");
        // Between fork and exec a child has its parent's name.
        while kill(std::process::id(), "sleep").unwrap() == 0 {}
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }
}
