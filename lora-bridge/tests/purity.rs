//! All but the server decides without I/O, clocks and randomness.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn only_the_server_touches_the_world() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&root, &mut files);
    assert!(files.len() > 10);
    for file in files.iter().filter(|file| !file.starts_with(root.join("server"))) {
        let text = fs::read_to_string(file).expect("a source");
        // Tests may draw from a seeded generator.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in ["tokio", "std::time", "SystemTime", "std::fs", "std::env", "UdpSocket", "kit::", "rand::"] {
            assert!(!code.contains(word), "{} uses `{word}`", file.display());
        }
        assert!(text.lines().count() <= 600, "{} is too long", file.display());
    }
}
