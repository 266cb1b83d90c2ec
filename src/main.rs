//! The program: everything is in the library, from the command line to the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    outgate::cli::main()
}
