//! Writes each target's seeds into corpus/TARGET, below the working directory.

fn main() -> std::io::Result<()> {
    for target in podwright::fuzz::TARGETS {
        let directory = std::path::Path::new("corpus").join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
