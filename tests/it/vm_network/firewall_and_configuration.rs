//! The firewall in place and the configuration must be of one piece, and a broken configuration must not
//! leave guests open.

use crate::world::eventually;
use crate::world::guarded_network::GuardedNetwork;
use rustix::process::Signal;
use std::fs;

#[test]
#[ignore = "requires root and network namespaces"]
fn a_configuration_whose_firewall_was_not_applied_is_not_ready_and_says_what_to_do() {
    let network = GuardedNetwork::new();
    let guest = "[[guest]]\nname = \"three\"\ninterface = \"r3\"\naddresses = [\"10.43.0.3\"]\n";
    let mut outgate = network.start(network.setup("good.test\n").tables(guest));
    let text = fs::read_to_string(outgate.config()).unwrap();
    fs::write(outgate.config(), text.replace("\"10.43.0.3\"", "\"10.43.0.3\", \"10.43.0.33\"")).unwrap();
    outgate.signal(Signal::HUP);
    outgate.await_admin(|response| response.status == 503 && response.text().contains("made from another"));
    eventually("the metric follows", || outgate.metric("firewall_in_place", &[]) == 0.0);
    network.apply(&outgate);
    outgate.await_ready();
    eventually("the metric follows", || outgate.metric("firewall_in_place", &[]) == 1.0);
}

#[test]
#[ignore = "requires root and network namespaces"]
fn a_typing_error_in_the_configuration_opens_no_guest() {
    let network = GuardedNetwork::new();
    let outgate = network.setup("good.test\n").tables("[limits]\nconections = 5\n").write();
    let config = outgate.config();
    let apply = || {
        let mut command = outgate.command(&["firewall", "apply", "--config", config.to_str().unwrap()]);
        network.net.gateway.run(|| command.output()).expect("outgate runs")
    };
    let output = apply();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("conections") && said.contains("closed completely"), "{said}");
    network.storm();

    // A sound one opens what it should, and a later error changes nothing of that.
    let sound = fs::read_to_string(&config).unwrap().replace("conections", "connections");
    fs::write(&config, &sound).unwrap();
    network.apply(&outgate);
    let ruleset = || {
        let list =
            || std::process::Command::new("nft").args(["-s", "-t", "list", "ruleset"]).output().expect("nft is there");
        network.net.gateway.run(list).stdout
    };
    let before = ruleset();
    fs::write(&config, sound.replace("connections", "conections")).unwrap();
    assert_eq!(apply().status.code(), Some(1));
    assert_eq!(ruleset(), before);
}
