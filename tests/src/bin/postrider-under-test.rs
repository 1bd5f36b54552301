//! The `postrider` binary, built in this package so that tests find it.
fn main() -> std::process::ExitCode {
    postrider_cli::main()
}
