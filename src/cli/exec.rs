//! `podwright exec`

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use crate::Result;
use crate::cli::client::{Client, Endpoint};
use crate::cli::print;
use crate::cri::wire::ExecSyncRequest;

#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    endpoint: Endpoint,
    /// Seconds that the command may take; 0: as long as it likes
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    timeout: i64,
    /// ID, its beginning, or name
    container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(super) fn run(self) -> Result<ExitCode> {
        self.endpoint.run(async |mut client: Client| {
            let container_id = client.container(&self.container).await?.id;
            let request = ExecSyncRequest { container_id, cmd: self.command.clone(), timeout: self.timeout };
            let answer = client.runtime.exec_sync(request).await?.into_inner();
            // Whoever reads only one of the two still gets the exit code.
            let _ = std::io::stderr().write_all(&answer.stderr);
            print(&answer.stdout)?;
            Ok(exit_code(answer.exit_code))
        })
    }
}

/// Of a command in a container, as our own.
pub(super) fn exit_code(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
