//! Configurations and lists that cannot be used: under a service manager the daemon starts even so, with what worked
//! before or refusing everybody at once, and the firewall stays closed over a boot.

use crate::transparent;
use crate::world::client::{Get, Wire};
use crate::world::dns::A;
use crate::world::outgate::Outgate;
use crate::world::service_manager::ServiceManager;
use crate::world::stub_resolver::{RESOLVER, SERVFAIL, query};
use crate::world::vmnet::{EVIL, Vmnet, connect, hammer, shell, succeed};
use crate::world::{ADMIN, EVIL as STRANGER, PROXY, World, eventually};
use socket2::Type;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

const RULES: &str = "good.test\ntcp://11.0.0.66:7\n";
const BROKEN: &str = "nonsense = [\n";

/// A daemon as its units start it, not yet started, and the socket for its messages to the service manager.
fn managed(world: &World) -> (Outgate, UnixDatagram) {
    let listen = format!("proxy = [\"{PROXY}\"]\ntransparent = [\"0.0.0.0:3129\"]\ndns = [\"{RESOLVER}\"]");
    let mut outgate = transparent::setup(world, RULES).listen(&listen).write();
    let mut manager = ServiceManager::listen(&world.gateway, &[PROXY, ADMIN, RESOLVER], 1);
    manager.add(&world.gateway, RESOLVER, Type::DGRAM, false);
    manager.add(&world.gateway, "0.0.0.0:3129", Type::STREAM, true);
    manager.name(&[
        "outgate.socket",
        "outgate-admin.socket",
        "outgate-dns.socket",
        "outgate-dns.socket",
        "outgate-transparent.socket",
    ]);
    let ear = manager.hear(&outgate.path("notify"), Duration::from_secs(60));
    outgate.managed(manager);
    (outgate, ear)
}

fn break_configuration(outgate: &Outgate) -> String {
    let sound = fs::read_to_string(outgate.config()).unwrap();
    fs::write(outgate.config(), format!("{BROKEN}{sound}")).unwrap();
    sound
}

fn readyz(outgate: &Outgate) -> (u16, String) {
    let answer = outgate.admin("/readyz").expect("the admin listener answers");
    (answer.status, answer.text())
}

/// Every listener refuses every guest at once in its own protocol, and all reports say so.
#[track_caller]
fn assert_refuses(world: &World, outgate: &mut Outgate, why: &str) {
    outgate.await_admin(|answer| answer.status == 503 && answer.text().contains("not_configured"));
    let (status, said) = readyz(outgate);
    assert!(status == 503 && said.contains(why), "{why}: {said}");
    let refused = world.guest.get("good.test", "/");
    assert_eq!((refused.status, refused.reason().as_str()), (503, "not_configured"));
    let proxy_status = refused.header("proxy-status").unwrap_or_default().to_owned();
    assert!(proxy_status.contains("proxy_configuration_error"), "{proxy_status}");
    assert_eq!(world.guest.connect("good.test:443").0.reason(), "not_configured");
    assert_eq!(world.guest.socks_name("good.test", 443).0, Some(1));
    let to = SocketAddr::from((STRANGER, 443));
    let tls = Wire::dial(&world.guest.namespace, to).unwrap().tls("good.test");
    let tls = tls.and_then(|mut tls| tls.get("good.test", "/").map(|answer| answer.status));
    assert!(tls.as_ref().is_err_and(|error| error.to_string().contains("AccessDenied")), "{tls:?}");
    let mut plain = Wire::dial(&world.guest.namespace, SocketAddr::from((STRANGER, 80))).unwrap();
    plain.say("GET / HTTP/1.1\r\nHost: good.test\r\n\r\n");
    assert_eq!(plain.hear("GET").reason(), "not_configured");
    // It may come before the connection is seen to be made.
    let raw = Wire::dial(&world.guest.namespace, SocketAddr::from((STRANGER, 7))).and_then(|mut raw| raw.rest());
    assert_eq!(raw.unwrap_err().kind(), ErrorKind::ConnectionReset);
    for reply in [world.guest.dns(&query("good.test", A)), world.guest.dns_tcp(&query("good.test", A))] {
        assert_eq!(reply.code, SERVFAIL, "{reply:?}");
        assert_eq!(reply.extended, Some((14, "not_configured".to_owned())));
    }
    assert_eq!(world.guest.connect("evil.test:443").0.reason(), "not_configured", "of everything that can be asked");
    assert!(outgate.counted("denied", "not_configured") >= 6.0);
    assert!(world.internet.all().is_empty() && world.dns.names().is_empty(), "nobody outside noticed any of it");
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_any_configuration_every_guest_is_refused_at_once_until_the_file_is_corrected() {
    let world = World::new();
    let (mut outgate, ear) = managed(&world);
    let sound = break_configuration(&outgate);
    outgate.launch();
    assert_refuses(&world, &mut outgate, "outgate.toml:1:");
    let mut message = [0; 4096];
    let mut told = String::new();
    while !told.contains("READY=1") || !told.contains("not_configured") {
        let length = ear.recv(&mut message).unwrap();
        told.push_str(&String::from_utf8_lossy(&message[..length]));
    }
    // The same process stays for as long as nothing changes.
    let pid = outgate.pid();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((outgate.pid(), readyz(&outgate).0), (pid, 503));
    assert!(!outgate.path("state").join("used.json").exists(), "nothing that was kept is touched");

    fs::write(outgate.config(), sound).unwrap();
    assert_eq!(outgate.ended().code(), Some(1), "to be started again");
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_broken_list_without_a_last_good_one_refuses_every_guest_until_it_is_corrected() {
    let world = World::new();
    let (mut outgate, _ear) = managed(&world);
    fs::write(outgate.rules(), "good.test:https\n").unwrap();
    outgate.launch();
    assert_refuses(&world, &mut outgate, "no valid whitelist");
    let said =
        outgate.command(&["whitelist", "reload", "--config", outgate.config().to_str().unwrap()]).output().unwrap();
    let error = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && error.contains("not_configured"), "the control socket says why: {error}");
    fs::write(outgate.rules(), RULES).unwrap();
    assert_eq!(outgate.ended().code(), Some(1), "to be started again");
    outgate.launch();
    outgate.await_ready();
    assert_eq!(world.guest.get("good.test", "/").status, 200);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_connection_while_a_socket_is_missing_is_answered_or_reset_at_once() {
    let world = World::new();
    let (mut outgate, _ear) = managed(&world);
    let config = fs::read_to_string(outgate.config()).unwrap();
    let wanted = format!("proxy = [\"{PROXY}\", \"10.42.42.1:8080\"]");
    let config =
        config.replace(&format!("proxy = [\"{PROXY}\"]"), &wanted).replace("\"0.0.0.0:3129\"", "\"0.0.0.0:4129\"");
    fs::write(outgate.config(), config).unwrap();
    outgate.launch();
    outgate.await_admin(|answer| answer.text().contains("no socket unit listens on 10.42.42.1:8080"));
    assert_eq!(world.guest.get("good.test", "/").reason(), "not_configured");
    // Brought to a socket that no listener is for.
    let brought = Wire::dial(&world.guest.namespace, SocketAddr::from((STRANGER, 443)));
    let brought = brought.and_then(|mut brought| brought.rest());
    assert_eq!(brought.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(outgate.errors().contains("`outgate listen apply`"), "the remedy is printed: {}", outgate.errors());
}

#[test]
#[ignore = "requires root and network namespaces"]
fn without_a_service_manager_the_daemon_reports_the_error_and_exits() {
    let world = World::new();
    for broken in ["configuration", "list"] {
        let mut outgate = world.setup(RULES).write();
        match broken {
            "configuration" => drop(break_configuration(&outgate)),
            _ => fs::write(outgate.rules(), "good.test:https\n").unwrap(),
        }
        outgate.launch();
        assert_eq!(outgate.ended().code(), Some(1), "{broken}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn the_last_configuration_that_worked_is_used_while_the_file_is_invalid() {
    let world = World::new();
    let (mut outgate, _ear) = managed(&world);
    let copies = outgate.path("copies");
    let folder = copies.to_str().unwrap().to_owned();
    outgate.run_with(&["--copies", &folder]);
    let config = outgate.config();
    let keep = |outgate: &Outgate| {
        let arguments = ["check", "--keep", "--copies", &folder, "--config", config.to_str().unwrap()];
        outgate.command(&arguments).output().unwrap()
    };
    // Only root's folder is one.
    fs::create_dir(&copies).unwrap();
    fs::set_permissions(&copies, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!keep(&outgate).status.success());
    fs::set_permissions(&copies, fs::Permissions::from_mode(0o755)).unwrap();
    succeed(keep(&outgate));
    let sound = break_configuration(&outgate);
    assert!(!keep(&outgate).status.success(), "what is broken is not kept");

    outgate.launch();
    outgate.await_admin(|answer| answer.status == 503);
    assert_eq!(world.guest.get("good.test", "/").status, 200);
    assert_eq!(world.guest.get("evil.test", "/").status, 403);
    world.guest.lookup("good.test").assert_is([crate::world::GOOD]);
    let (_, said) = readyz(&outgate);
    assert!(said.contains("outgate.toml:1:") && said.contains(&folder), "{said}");
    // A list that is read again says nothing about the configuration.
    fs::write(outgate.rules(), format!("{RULES}more.test\n")).unwrap();
    eventually("the list is in force", || world.guest.get("more.test", "/").reason() != "not_whitelisted");
    assert_eq!(readyz(&outgate).0, 503);

    fs::write(outgate.config(), &sound).unwrap();
    succeed(outgate.command(&["whitelist", "reload", "--config", config.to_str().unwrap()]).output().unwrap());
    assert_eq!(readyz(&outgate), (200, "ok\n".to_owned()));
    assert!(outgate.stop().success());

    // A copy that others may have written is none.
    break_configuration(&outgate);
    fs::set_permissions(copies.join("worked.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    outgate.launch();
    outgate.await_admin(|answer| answer.text().contains("not_configured"));
    assert!(outgate.errors().contains("users other than root may have written it"), "{}", outgate.errors());
}

/// What a boot leaves of the rules: nothing.
fn boot(net: &Vmnet) {
    shell(&net.gateway, "nft flush ruleset");
    for family in ["-4", "-6"] {
        let rules = shell(&net.gateway, &format!("ip {family} rule show"));
        let priorities =
            rules.lines().filter_map(|line| line.split(':').next()).filter(|priority| priority.starts_with('4'));
        priorities.for_each(|priority| drop(shell(&net.gateway, &format!("ip {family} rule del pref {priority}"))));
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_boot_with_an_invalid_configuration_opens_no_guest() {
    let net = Vmnet::new();
    let copies = net.path("copies");
    let folder = copies.to_str().unwrap();
    net.config("[firewall]\nguest_interfaces = [\"br0\", \"r*\"]\n");
    let apply = || net.firewall(&["apply", "--copies", folder]);
    succeed(apply());
    let mode = |path: &str| fs::metadata(copies.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("applied.toml"), mode("interfaces")), (0o755, 0o600, 0o600));
    // One that was guests' once.
    net.config("[firewall]\nguest_interfaces = [\"br0\"]\n");
    succeed(apply());

    let sound = fs::read_to_string(net.path("outgate.toml")).unwrap();
    fs::write(net.path("outgate.toml"), format!("{BROKEN}{sound}")).unwrap();
    // What is in place stays.
    let output = apply();
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("in force again"));
    boot(&net);
    let output = apply();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}{wrong}");
    assert!(said.contains("applied last is in force again") && wrong.contains("outgate.toml:1:"), "{said}{wrong}");
    let _brought = net.transparent();
    assert_eq!(connect(&net.one, "11.0.0.66:443").unwrap(), "here\n", "guests are served as before");
    EVIL.iter().for_each(|evil| hammer(&net.one, evil));
    net.assert_no_leaks();

    // What was named since is closed too, though nothing else of that file is taken.
    let named = sound.replace("[\"br0\"]", "[\"br0\", \"r3\"]");
    fs::write(net.path("outgate.toml"), format!("mode = \"nonsense\"\n{named}")).unwrap();
    boot(&net);
    assert_eq!(apply().status.code(), Some(1));
    assert!(connect(&net.three, "10.43.0.1:22").is_err());
    EVIL.iter().for_each(|evil| hammer(&net.three, evil));
    net.assert_no_leaks();
    // An empty file is valid and requires no firewall: that alone opens no guest.
    for text in ["", "[limits]\nconnections = 7\n"] {
        fs::write(net.path("outgate.toml"), text).unwrap();
        boot(&net);
        let output = apply();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("in force again") && said.contains("`outgate firewall remove`"), "{said}");
        assert_eq!(connect(&net.one, "11.0.0.66:443").unwrap(), "here\n");
        EVIL.iter().for_each(|evil| hammer(&net.one, evil));
        net.assert_no_leaks();
    }
    fs::write(net.path("outgate.toml"), format!("{BROKEN}{sound}")).unwrap();

    // Without the copy, or where this version cannot use it, all that was ever a guest's is closed.
    let later = Some("mode = \"allowlist\"\n# A copy that outgate keeps, version 2\n");
    for copy in [None, Some("sense = 1\n"), later] {
        match copy {
            None => fs::remove_file(copies.join("applied.toml")).unwrap(),
            Some(text) => fs::write(copies.join("applied.toml"), text).unwrap(),
        }
        boot(&net);
        let output = apply();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("closed completely"), "{said}");
        assert_eq!(said.contains("applied.toml: a later outgate wrote it (version 2"), copy == later, "{said}");
        for guest in [&net.one, &net.three] {
            assert!(connect(guest, "11.0.0.66:443").is_err());
            EVIL.iter().for_each(|evil| hammer(guest, evil));
        }
        net.assert_no_leaks();
    }
    // Of names that a later version kept nothing is lost, and the command that is printed makes them readable again.
    let names = copies.join("interfaces");
    let text = fs::read_to_string(&names).unwrap().replace("version 1", "version 2");
    fs::write(&names, &text).unwrap();
    boot(&net);
    let said = String::from_utf8(apply().stdout).unwrap();
    assert!(
        said.contains("interfaces: a later outgate wrote it (version 2") && said.contains("closed completely"),
        "{said}"
    );
    EVIL.iter().for_each(|evil| hammer(&net.three, evil));
    net.assert_no_leaks();
    fs::write(net.path("outgate.toml"), &sound).unwrap();
    let output = apply();
    succeed(output.clone());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("no copy of this configuration is kept")
            && said.contains("remove it, then run `outgate firewall apply`"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&names).unwrap(), text);
    fs::remove_file(&names).unwrap();
    let output = apply();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("no copy of this"), "{output:?}");
    succeed(output);
    assert!(fs::read_to_string(&names).unwrap().starts_with("# outgate, guests' interfaces, version 1\n"));

    // Put right, it is as it says; removed, nothing is left that would close it at the next boot.
    fs::write(net.path("outgate.toml"), &sound).unwrap();
    succeed(apply());
    assert_eq!(connect(&net.one, "11.0.0.66:443").unwrap(), "here\n");
    succeed(net.firewall(&["remove", "--copies", folder]));
    assert!(!copies.join("applied.toml").exists() && !copies.join("interfaces").exists());
}
