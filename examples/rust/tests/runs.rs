//! The example does what the README says.

use std::process::Command;

#[test]
fn program_asks_its_own_tool() {
    let directory = tempfile::tempdir().expect("a directory without configuration");
    let mut program = Command::new(env!("CARGO_BIN_EXE_trunkline-example"));
    let output =
        program.current_dir(directory.path()).env_remove("TRUNKLINE_URL").output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "\"HELLO\"\n", "{output:?}");
}
