//! Apart from other tests: a process that begins another one lends it its open files for a moment, with their locks, and a node that starts anew
//! just then finds its content in use.

/// A Tokio runtime's own randomness (which of those who wait for a `watch` are woken first) is seeded by a number that counts the process's
/// runtimes; so what failed among others is replayed in a process of its own, and there it is always the same.
#[test]
fn equal_seeds_give_equal_logs() {
    for seed in 0..46 {
        let run = || {
            let mut simulate = std::process::Command::new(env!("CARGO_BIN_EXE_antirio-simulate"));
            let said = simulate.args(["--log", "--threads", "1", "--seeds", "1", "--first"]).arg(seed.to_string()).output();
            let said = String::from_utf8(said.expect("it was built for this test").stdout).expect("UTF-8");
            // The last line says how fast it was.
            let log: Vec<String> = said.lines().map(str::to_owned).collect();
            log.split_last().map(|(_, log)| log.to_vec()).expect("a log")
        };
        let (first, second) = (run(), run());
        assert!(first.len() > 10, "seed {seed}: {first:?}");
        assert_eq!(first, second, "seed {seed}");
    }
}
