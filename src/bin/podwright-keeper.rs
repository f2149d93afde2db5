//! The keeper: see `podwright::keeper`.

fn main() {
    podwright::keeper::main()
}
