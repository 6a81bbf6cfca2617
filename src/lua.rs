//! The Lua host: plugins are found, checked, and run in one VM for each worker (PUC Lua 5.4).
//!
//! A [`Program`] is what was loaded, shared by all workers; [`Program::instantiate`] gives a worker its own VM with the
//! chains of all routes. Nothing of `mlua` leaves this module.

mod api;
mod bench;
mod broken;
mod budget;
mod bundle;
mod catalogue;
mod convert;
mod counted;
mod fault;
mod fetch;
mod inventory;
mod jose;
mod keys;
mod kit;
mod lines;
mod loader;
mod pattern;
mod rocks;
mod sandbox;
mod spec;
mod strings;
mod vm;

pub(crate) use api::{page as api_page, types as api_types};
pub(crate) use bench::{Measured, Subject, run as run_bench};
pub(crate) use bundle::{BUILT_IN, Bundle, LIBRARY, SPEC_LIBRARY, TEMPLATE, find as find_plugin, is_name};
pub(crate) use catalogue::{
    json_schema as plugins_schema, json_schema_of as plugin_schema, page as plugins_page,
};
pub(crate) use inventory::{Listed, folders as plugin_folders, list as list_plugins};
pub(crate) use kit::Tools;
pub(crate) use lines::FileLines;
pub(crate) use loader::{Ambiguous, Explained, Program, RouteChain, Routes, find_route};
pub(crate) use spec::run as run_spec;
