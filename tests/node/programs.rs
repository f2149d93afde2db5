//! Small static C programs that the tests put into containers.

use std::path::PathBuf;
use std::process::Command;

/// Builds programs/NAME.c, beside this test binary. Where there is no compiler one that lies there
/// already is taken as it is.
pub fn build(name: &str) -> PathBuf {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/node/programs/{name}.c"));
    let program = std::env::current_exe().unwrap().with_file_name(format!("program-{name}"));
    // Another test may be building the same.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let new = program.with_extension(std::process::id().to_string());
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O1", "-Wall", "-Werror", "-D_GNU_SOURCE", "-o"]).arg(&new).arg(source);
    match cc.output() {
        Err(_) if program.exists() => {}
        output => {
            let output = output.expect("these tests need a C compiler");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            std::fs::rename(&new, &program).unwrap();
        }
    }
    program
}
