//! `lora-device-service [SOCKET]`: serves until it is told to stop. Exit status 0 after SIGTERM or SIGINT, 78 if the configuration is
//! unusable (the reason is the last line on the standard error).

use std::{path::PathBuf, process::ExitCode};

use lora_device_service::service;
use tokio::signal::unix::{SignalKind, signal};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let socket = std::env::args_os().nth(1).map_or_else(|| PathBuf::from(tenant::SOCKET), PathBuf::from);
    // As the first process of its container it is not ended by a signal that it does not handle.
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("lora-device-service: cannot handle signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    let client = tenant::Client::new(socket);
    let report = |line: &str| eprintln!("lora-device-service: {line}");
    tokio::select! {
        biased;
        _ = terminate.recv() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        fatal = service::run(&client, &report) => {
            report(&service::describe(&fatal));
            ExitCode::from(EXIT_CONFIG)
        }
    }
}
