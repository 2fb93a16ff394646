//! The agent that runs on every node: edge or cloud.

pub mod agreements;
pub mod api;
pub mod arbitrator;
pub mod config;
pub mod core;
pub mod directory;
pub mod dmu;
pub mod edge2edge;
pub mod identity;
pub mod insurance;
pub mod lora;
pub mod market;
pub mod migration;
pub mod node;
pub mod orchestrator;
pub mod readiness;
pub mod readings;
pub mod service;
pub mod standalone;
pub mod store;
pub mod tenants;
pub mod timeline;
