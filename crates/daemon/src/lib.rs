//! The process shell.
