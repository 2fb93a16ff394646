//! Every problem that the workspace can answer with has a section in `docs/problems.md`, and every section has a problem.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Rust files below the `src` directories of all members.
fn sources() -> Vec<PathBuf> {
    let root = workspace();
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(root.join("Cargo.toml")).unwrap()).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let mut waiting: Vec<PathBuf> = members.iter().map(|member| root.join(member.as_str().unwrap()).join("src")).collect();
    let mut found = Vec::new();
    while let Some(directory) = waiting.pop() {
        // A member may be in the making.
        for entry in std::fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The arguments behind an opening parenthesis, split at commas of their own level; strings are kept whole.
fn arguments(text: &str) -> Vec<String> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    let mut found = vec![String::new()];
    for c in text.chars() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else {
            match c {
                '"' => in_string = true,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.push(String::new());
                    continue;
                }
                _ => {}
            }
        }
        if let Some(last) = found.last_mut() {
            last.push(c);
        }
    }
    found.into_iter().map(|argument| argument.trim().to_owned()).collect()
}

fn literal(text: &str) -> Option<String> {
    let name = text.strip_prefix('"')?.strip_suffix('"')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    is_name.then(|| name.to_owned())
}

/// Names in one file: second arguments of `Problem::new` (`Self::new` in the conversions) and of the local helper `refuse`; in the file that
/// defines problems, the names that stand behind an arrow in a table.
fn names(path: &Path, text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for call in ["Problem::new(", "Self::new(", "refuse("] {
        for (at, _) in text.match_indices(call) {
            found.extend(arguments(&text[at + call.len()..]).get(1).and_then(|argument| literal(argument)));
        }
    }
    if path.ends_with("kit/src/problem.rs") {
        for (at, _) in text.match_indices("=>") {
            // The arm may be a block that holds nothing but the name.
            let arm = text[at + 2..].trim_start_matches(|c: char| c.is_whitespace() || c == '{');
            let quoted: String = arm.split_inclusive('"').take(2).collect();
            found.extend(literal(&quoted));
        }
    }
    found
}

#[test]
fn every_problem_has_a_section_and_every_section_a_problem() {
    let mut used: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in sources() {
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains("Problem") {
            used.extend(names(&path, &text).into_iter().map(|name| (name, path.clone())));
        }
    }
    assert!(
        used.len() > 30 && used.contains_key("bad-signature") && used.contains_key("malformed-query"),
        "the search works: {used:?}"
    );
    let page = std::fs::read_to_string(workspace().join("docs/problems.md")).unwrap();
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let undocumented: Vec<_> = used.iter().filter(|(name, _)| !sections.contains(name.as_str())).collect();
    assert!(undocumented.is_empty(), "no section in docs/problems.md: {undocumented:?}");
    let unused: Vec<_> = sections.iter().filter(|name| !used.contains_key(**name)).collect();
    assert!(unused.is_empty(), "sections of problems that nobody sends: {unused:?}");
}

#[test]
fn names_are_found_wherever_they_stand() {
    let text = r#"
        Problem::new(StatusCode::GONE, "events-gone", "not kept, any more")
        Problem::new(
            status(1, 2),
            "too-large", "x")
        refuse(S::CONFLICT, "stale-record", "a \"newer\" record")
        Problem::new(status, name, "a title")
    "#;
    let expected = ["events-gone", "stale-record", "too-large"].map(str::to_owned);
    assert_eq!(names(Path::new("a.rs"), text), expected.into());
}
