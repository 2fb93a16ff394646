//! `lora-device-service [--direct] [SOCKET]`: serves until it is told to stop. With `--direct` it uses the machine's network itself instead
//! of its node's. Exit status 0 after SIGTERM or SIGINT, 64 for unknown arguments, 78 if the configuration is unusable (the reason is the
//! last line on the standard error).

use std::{path::PathBuf, process::ExitCode};

use lora_device_service::{codec::worker, outside::Outside, service, sinks::Sinks};
use tokio::signal::unix::{SignalKind, signal};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;
/// `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;
/// This program, wherever it is and whatever it is called.
const THIS_PROGRAM: &str = "/proc/self/exe";

struct Arguments {
    socket: PathBuf,
    is_direct: bool,
}

fn arguments() -> Option<Arguments> {
    let mut arguments = Arguments { socket: PathBuf::from(tenant::SOCKET), is_direct: false };
    let mut sockets = 0;
    for argument in std::env::args_os().skip(1) {
        if argument == "--direct" {
            arguments.is_direct = true;
        } else {
            sockets += 1;
            arguments.socket = PathBuf::from(argument);
        }
    }
    (sockets <= 1).then_some(arguments)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == worker::ARGUMENT) && arguments.next().is_none() {
        return worker::run();
    }
    serve()
}

#[tokio::main(flavor = "current_thread")]
async fn serve() -> ExitCode {
    let Some(Arguments { socket, is_direct }) = arguments() else {
        eprintln!("usage: lora-device-service [--direct] [SOCKET]");
        return ExitCode::from(EXIT_USAGE);
    };
    // As the first process of its container it is not ended by a signal that it does not handle.
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("lora-device-service: cannot handle signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let client = tenant::Client::new(&socket);
    let outside = if is_direct { Outside::Direct } else { Outside::through_node(&socket) };
    let report = |line: &str| eprintln!("lora-device-service: {line}");
    let options = service::Options { sinks: Some(Sinks::new(socket, outside)), worker: Some(PathBuf::from(THIS_PROGRAM)) };
    tokio::select! {
        biased;
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        fatal = service::run_with(&client, options, &report) => {
            report(&service::describe(&fatal));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
