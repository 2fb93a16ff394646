//! The real program against a node of the tests: readings, and what becomes of them outside.

mod common;
mod edgex_shapes;
mod service;
mod sinks;
