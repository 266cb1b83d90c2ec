fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::env::args_os().nth(1);
    let (settings, _) = outgate::config::Settings::load(path.as_ref().map(std::path::Path::new)).unwrap();
    if let Err(e) = outgate::daemon::run(settings) { eprintln!("{e}"); std::process::exit(1) }
}
