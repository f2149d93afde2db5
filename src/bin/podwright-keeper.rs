//! The keeper: see `podwright::keeper`.

// Its children are copies of it for a while.
#[global_allocator]
static ALLOCATOR: podwright::sys::wiping::Wiping = podwright::sys::wiping::Wiping;

fn main() {
    podwright::keeper::main()
}
