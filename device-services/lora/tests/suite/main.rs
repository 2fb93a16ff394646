//! The real program against a node of the tests: readings, and what becomes of them outside.

mod broker;
mod chirpstack;
mod common;
mod edgex;
mod edgex_shapes;
mod service;
