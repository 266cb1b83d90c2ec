//! What cuts guests off or opens them, and would go unnoticed otherwise: each is reported within seconds by
//! `/readyz`, `outgate status` and the metric, with the command that mends it, which is run as it is printed.

use crate::world::firewall_watcher::Watcher;
use crate::world::namespace::{Namespace, batch};
use crate::world::vmnet::{EVIL, Vmnet, WITH_ADMIN, admin, for_nobody, hammer, nft, shell, succeed};
use crate::world::{World, eventually};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How long a report may take: the documented time, and more for a busy machine.
const SOON: Duration = Duration::from_secs(20);

const GUESTS: &str = "[firewall]\nguest_interfaces = [\"br0\", \"r3\", \"r4\"]\n";

/// A daemon without privileges, the watcher, and a network that is guarded.
struct Guarded {
    net: Vmnet,
    daemon: Child,
    watcher: Option<Watcher>,
    lists: String,
}

impl Guarded {
    fn new() -> Guarded {
        let net = Vmnet::new();
        let lists = for_nobody(&net);
        net.config_listening(WITH_ADMIN, &format!("{GUESTS}{lists}"));
        succeed(net.firewall(&["apply"]));
        let watcher = Some(Watcher::start(&net));
        let daemon = net.daemon(65534);
        let guarded = Guarded { net, daemon, watcher, lists };
        guarded.await_good();
        guarded
    }

    fn status(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.args(["status", "--config"]).arg(self.net.path("outgate.toml"));
        let output = self.net.gateway.run(|| command.output()).expect("outgate runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn await_good(&self) {
        let begun = Instant::now();
        loop {
            let (ready, status) = (admin(&self.net, "/readyz"), self.status());
            if ready.starts_with("200") && status.contains("guarding br0: 2 guests\n") {
                return;
            }
            assert!(begun.elapsed() < SOON, "something is wrong: {ready}; {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until this is reported everywhere; returns the answer of `/readyz`.
    #[track_caller]
    fn await_told(&self, cause: &str, begun: Instant, text: &str) -> String {
        let metric = format!("outgate_trouble{{cause=\"{cause}\"}} 1");
        let mut ready = String::new();
        while !(ready.starts_with("503") && ready.contains(text) && admin(&self.net, "/metrics").contains(&metric)) {
            assert!(begun.elapsed() < SOON, "{cause} is not told: {ready}; {}", self.status());
            std::thread::sleep(Duration::from_millis(50));
            ready = admin(&self.net, "/readyz");
        }
        println!("{cause}: told after {:.1} s", begun.elapsed().as_secs_f64());
        let status = self.status();
        assert!(status.contains(&format!("TROUBLE {cause}: ")) && status.contains(text), "{status}");
        ready
    }

    /// Runs every command that was printed, and waits until nothing is wrong.
    #[track_caller]
    fn mend(&self, ready: &str) {
        let commands: Vec<&str> = ready.split('`').skip(1).step_by(2).collect();
        assert!(!commands.is_empty(), "{ready}");
        for command in commands {
            if let Some(arguments) = command.strip_prefix("outgate firewall ") {
                let output = self.net.firewall(&[arguments]);
                assert!(matches!(output.status.code(), Some(0 | 6)), "{output:?}");
            } else if command.starts_with("nft insert ") {
                shell(&self.net.gateway, command);
            }
        }
        self.await_good();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn every_damage_to_the_firewall_is_reported_with_its_remedy() {
    let mut guarded = Guarded::new();
    let gateway = || &guarded.net.gateway;
    assert!(
        guarded.status().starts_with("guarding br0: 2 guests\nguarding r3: 1 guest\nguarding r4: 1 guest\n"),
        "{}",
        guarded.status()
    );
    let told = |sabotage: &str, cause: &str, text: &str| {
        shell(gateway(), sabotage);
        let ready = guarded.await_told(cause, Instant::now(), text);
        EVIL.iter().for_each(|evil| hammer(&guarded.net.one, evil));
        guarded.net.assert_no_leaks();
        guarded.mend(&ready);
    };
    told("nft flush ruleset", "ruleset", "the firewall is not in place");
    told("nft flush chain inet outgate refused", "ruleset", "chain refused");
    told("nft delete table bridge outgate", "ruleset", "table bridge outgate is missing");
    told(
        "nft 'table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established accept; iifname lo accept; }; }'",
        "other_firewall",
        "nft insert rule inet filter input iifname br0 accept",
    );
    nft(gateway(), "delete table inet filter");
    // Rules that name the guests' interface, in chains that accept the rest.
    for hook in ["input priority 10", "prerouting priority -350"] {
        let table =
            format!("table inet filter {{ chain c {{ type filter hook {hook}; iifname br0 tcp dport 3128 drop; }}; }}");
        told(&format!("nft '{table}'"), "other_firewall", "nft insert rule inet filter c iifname br0 accept");
        nft(gateway(), "delete table inet filter");
    }
    // No event tells of these: it is put right within 10 s.
    let (begun, flags) = (Instant::now(), "ip -d link show p1");
    shell(
        gateway(),
        "ip link set dev p1 type bridge_slave isolated off guard off; sysctl -q -w net.ipv4.conf.br0.arp_accept=1",
    );
    shell(gateway(), "ip route flush table 3129");
    eventually("the port is isolated and guarded again", || {
        let shown = shell(gateway(), flags);
        shown.contains("isolated on") && shown.contains("guard on")
    });
    eventually("the kernel setting is as it was", || {
        shell(gateway(), "sysctl -n net.ipv4.conf.br0.arp_accept").trim() == "0"
            && shell(gateway(), "ip route show table 3129").contains("local default")
    });
    println!("flags, settings and route of the listener: again after {:.1} s", begun.elapsed().as_secs_f64());
    guarded.await_good();

    // Without its name nothing of the configuration holds it any more.
    batch(Some(gateway()), "link set r4 down\nlink set r4 name s4\n");
    guarded.await_told("interface_missing", Instant::now(), "interface r4 of [firewall].guest_interfaces is missing");
    batch(Some(gateway()), "link set s4 name r4\nlink set r4 up\naddr replace 10.43.0.1/32 dev r4\n");
    guarded.await_good();

    // Interfaces that look like guests' and that the configuration does not name.
    batch(
        Some(gateway()),
        "link add docker0 type bridge\nlink add name v1 type veth peer name v2\nlink set v1 master docker0\n",
    );
    guarded.await_told("unguarded_guests", Instant::now(), "NOT guarded: docker0");
    assert!(guarded.status().contains("\nNOT guarded: docker0\n"), "{}", guarded.status());
    let named = GUESTS.replace("[firewall]\n", "[firewall]\nnot_guests = [\"docker*\"]\n");
    guarded.net.config_listening(WITH_ADMIN, &format!("{named}{}", guarded.lists));
    shell(gateway(), "ip link set docker0 up");
    batch(Some(gateway()), "link add docker1 type bridge\n");
    guarded.await_good();

    // No process is left that could see any of it.
    let Some(watcher) = guarded.watcher.take() else { unreachable!("it runs") };
    watcher.kill();
    let begun = Instant::now();
    let ready = guarded.await_told("watcher", begun, "systemctl restart outgate-host.service");
    assert!(ready.contains("silent for 1"), "{ready}");
    guarded.watcher = Some(Watcher::start(&guarded.net));
    guarded.await_good();
    let log = std::fs::read_to_string(guarded.net.path("stderr")).unwrap();
    for line in
        ["the firewall is not in place; run `outgate firewall apply`", "NOT guarded: docker0", "a trouble is over"]
    {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn removed_routing_rules_are_restored_within_a_second() {
    let guarded = Guarded::new();
    let gateway = &guarded.net.gateway;
    let rules = |family: &str| {
        let shown = shell(gateway, &format!("ip {family} rule show"));
        let mut rules: Vec<String> = shown.lines().filter(|line| line.starts_with('4')).map(str::to_owned).collect();
        rules.sort();
        rules
    };
    for family in ["-4", "-6"] {
        let before = rules(family);
        assert!(before.len() > 4, "{before:?}");
        let begun = Instant::now();
        shell(
            gateway,
            &format!("for p in 41 42 43 44; do while ip {family} rule del pref $p 2>/dev/null; do :; done; done"),
        );
        EVIL.iter().for_each(|evil| hammer(&guarded.net.one, evil));
        eventually("the routing rules are there again", || rules(family) == before);
        println!("ip {family} rule: again after {:.1} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < SOON);
    }
    shell(gateway, "ip route flush table 3129");
    eventually("the route is there again", || shell(gateway, "ip route show table 3129").contains("local default"));
    guarded.await_good();
    guarded.net.assert_no_leaks();
}

fn succeeds(namespace: &Namespace, line: &str) -> bool {
    namespace.run(|| Command::new("sh").args(["-c", line]).output()).expect("sh runs").status.success()
}

#[test]
#[ignore = "requires root and network namespaces"]
fn guests_that_bypass_the_rules_are_reported_until_they_are_declared() {
    let guarded = Guarded::new();
    let net = &guarded.net;
    let named = |names: &str| {
        let settings = GUESTS.replace("[firewall]\n", &format!("[firewall]\nnot_guests = [{names}]\n"));
        net.config_listening(WITH_ADMIN, &format!("{settings}{}", guarded.lists));
    };
    // A container's interface that stands on the uplink: macvlan, as Docker makes it, and ipvlan.
    for kind in ["macvlan", "ipvlan"] {
        let name = format!("{kind}@up0");
        if kind == "ipvlan" && !succeeds(&net.gateway, "ip link add link up0 name m0 type ipvlan && ip link del m0") {
            println!("this kernel has no ipvlan");
            continue;
        }
        let begun = Instant::now();
        shell(
            &net.gateway,
            &format!("ip link add link up0 name m0 type {kind} && ip link set m0 netns {}", net.one.name()),
        );
        guarded.await_told(
            "unguarded_guests",
            begun,
            &format!("NOT guarded: {name}: their traffic leaves without passing any rule"),
        );
        assert!(guarded.status().contains(&format!("\nNOT guarded: {name}\n")), "{}", guarded.status());
        named(&format!("{name:?}"));
        guarded.await_good();
        named("");
        guarded.await_told("unguarded_guests", Instant::now(), &name);
        shell(&net.one, "ip link del m0");
        guarded.await_good();
    }
    // One on an interface that this machine does not have does not matter.
    shell(&net.one, "ip link add link eth0 name m1 type macvlan");
    // A virtual machine's device.
    shell(&net.gateway, "ip link add link up0 name mt0 type macvtap");
    guarded.await_told("unguarded_guests", Instant::now(), "macvtap@up0");
    shell(&net.gateway, "ip link del mt0");
    guarded.await_good();
}

/// A container with the network of the host, as Docker's `--network host` has it: a control group, and this namespace.
struct InHostNetwork {
    group: std::path::PathBuf,
    process: Child,
}

impl InHostNetwork {
    /// Nothing where no control groups of version 2 are mounted, or where none can be made.
    fn start(net: &Vmnet, id: &str) -> Option<InHostNetwork> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let mounted = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?;
        let group = std::path::Path::new(mounted).join(format!("docker-{id}.scope"));
        std::fs::create_dir(&group).ok()?;
        let process = net.gateway.run(|| Command::new("sleep").arg("600").spawn()).unwrap();
        std::fs::write(group.join("cgroup.procs"), process.id().to_string()).unwrap();
        Some(InHostNetwork { group, process })
    }
}

impl Drop for InHostNetwork {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for _ in 0..100 {
            if std::fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_container_in_the_hosts_network_is_reported_until_it_is_declared() {
    let guarded = Guarded::new();
    let id = format!("{:064x}", std::process::id());
    let begun = Instant::now();
    let container =
        InHostNetwork::start(&guarded.net, &id).expect("requires control groups of version 2: mount -t cgroup2");
    let text = format!("container {} uses the network of this machine itself", &id[..12]);
    guarded.await_told("unguarded_guests", begun, &text);
    let settings = GUESTS.replace("[firewall]\n", "[firewall]\nnot_guests = [\"host-network\"]\n");
    guarded.net.config_listening(WITH_ADMIN, &format!("{settings}{}", guarded.lists));
    guarded.await_good();
    guarded.net.config_listening(WITH_ADMIN, &format!("{GUESTS}{}", guarded.lists));
    guarded.await_told("unguarded_guests", Instant::now(), &text);
    drop(container);
    guarded.await_good();
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_nearly_full_connection_tracking_table_is_reported_until_there_is_room() {
    let world = World::new();
    // The table's figures are the kernel's; the daemon sees files of the test's in their place.
    let mut outgate = world.setup("**.good.test\n").write();
    let (count, max) = (outgate.path("count"), outgate.path("max"));
    std::fs::write(&max, "1000\n").unwrap();
    std::fs::write(&count, "900\n").unwrap();
    let over = |file: &std::path::Path, name: &str| {
        format!("mount --bind {} /proc/sys/net/netfilter/nf_conntrack_{name}", file.display())
    };
    let script = format!("{} && {} && exec \"$0\" \"$@\"", over(&count, "count"), over(&max, "max"));
    outgate.start_by(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script]);
    outgate.launch();
    outgate.await_ready();
    let begun = Instant::now();
    std::fs::write(&count, "901\n").unwrap();
    outgate.await_admin(|answer| {
        answer.status == 503 && answer.text().contains("connection tracking is nearly full, 901 of 1000 entries")
    });
    eventually("the metric says so too", || outgate.metric("trouble", &[("cause", "conntrack")]) == 1.0);
    println!("conntrack: told after {:.1} s", begun.elapsed().as_secs_f64());
    std::fs::write(&max, "2000\n").unwrap();
    outgate.await_admin(|answer| answer.status == 200);
    eventually("the metric says so too", || outgate.metric("trouble", &[("cause", "conntrack")]) == 0.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn silent_dns_servers_are_reported_before_the_first_query() {
    let world = World::new();
    let begun = Instant::now();
    let mut outgate = world.setup("**.good.test\n").resolver("servers = [\"11.0.0.54\"]").start();
    outgate
        .await_admin(|answer| answer.status == 503 && answer.text().contains("no DNS server answers (11.0.0.54:53)"));
    println!("resolver: told after {:.1} s", begun.elapsed().as_secs_f64());
    eventually("the metric says so too", || outgate.metric("trouble", &[("cause", "resolver")]) == 1.0);
    assert!(begun.elapsed() < SOON);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn dns_servers_that_do_not_answer_are_reported() {
    let world = World::new();
    let mut outgate = world.setup("**.good.test\n").resolver("servers = [\"11.0.0.54\"]\ntimeout_ms = 300").start();
    let begun = Instant::now();
    let mut names = 0;
    while !outgate.admin("/readyz").is_some_and(|answer| answer.text().contains("no DNS server answers (11.0.0.54:53)"))
    {
        assert!(begun.elapsed() < 2 * SOON, "{}", outgate.errors());
        names += 1;
        world.guest.get(&format!("n{names}.good.test"), "/");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("resolver: told after {:.1} s", begun.elapsed().as_secs_f64());
    eventually("the metric says so too", || outgate.metric("trouble", &[("cause", "resolver")]) == 1.0);
    outgate.await_admin(|answer| answer.status == 503);
}
