//! The program: the command line over the library `outgate`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
