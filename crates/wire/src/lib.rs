//! The public contract.
