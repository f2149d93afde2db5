//! System calls that the libraries lack or get wrong, each with the invariant that makes it safe.
//! The only place for `unsafe`.
#![allow(unsafe_code)]
