//! Statements for any number of rows.
//!
//! A statement is handed to a thread and back, which costs more than its work on a row, so one statement takes many rows. Each number of rows
//! would be a statement of its own that is prepared once; so there are few, and a parameter that is not bound is `NULL`.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

/// Rows that one statement takes.
pub(super) const ROWS_MAX: usize = ROWS[ROWS.len() - 1];
const ROWS: [usize; 4] = [4, 16, 64, 256];

/// One statement, for some numbers of rows.
#[derive(Debug)]
pub(super) struct Texts([Arc<str>; ROWS.len()]);

impl Texts {
    /// By the statement for a number of rows, which must do nothing with a row of `NULL`.
    pub(super) fn new(text: impl Fn(usize) -> String) -> Self {
        Self(ROWS.map(|rows| text(rows).into()))
    }

    /// For `rows` rows, of which there are [`ROWS_MAX`] at most.
    pub(super) fn for_rows(&self, rows: usize) -> SqlStr {
        let index = ROWS.iter().position(|size| rows <= *size);
        debug_assert!(index.is_some(), "{rows} rows");
        AssertSqlSafe(Arc::clone(&self.0[index.unwrap_or(ROWS.len() - 1)])).into_sql_str()
    }
}

/// So many parameters.
pub(super) fn parameters(count: usize) -> String {
    vec!["?"; count].join(", ")
}

/// So many rows of parameters.
pub(super) fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", parameters(columns));
    format!("VALUES {}", vec![row.as_str(); rows].join(", "))
}
