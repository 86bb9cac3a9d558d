//! Rows of a snapshot: from COPY's lines to chunks.

pub mod chunk;
pub mod copy_text;
