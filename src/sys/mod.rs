//! System calls that the libraries lack or get wrong, each with the invariant that makes it safe.
//! The only place for `unsafe`.
#![allow(unsafe_code)]

pub mod async_fd;
pub mod bpf;
pub mod clone;
pub mod cpu;
pub mod fd;
pub mod filter_thread;
pub mod heap;
pub mod log_pipe;
pub mod mount;
pub mod namespace;
pub mod pidfd;
pub mod prctl;
pub mod probe;
pub mod proc_stat;
mod raw;
pub mod seqpacket;
pub mod shared_page;
pub mod socket;
pub mod text;
pub mod wiping;
pub mod writeback;
