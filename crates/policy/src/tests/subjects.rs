//! Which hosts a rule matches, by the form of its subject.

use super::*;

#[test]
fn a_bare_name_is_that_host_alone() {
    takes("ipfs.io", &["ipfs.io", "IPFS.io.", "ipfs.io:80"], &["a.ipfs.io", "io"]);
    takes("ipfs.io", &[], &LOOKALIKES);
}

#[test]
fn one_star_is_exactly_one_label() {
    takes("*.ipfs.io", &["a.ipfs.io", "x--y.ipfs.io"], &["ipfs.io", "a.b.ipfs.io", "io"]);
    takes("*.ipfs.io", &[], &LOOKALIKES);
}

#[test]
fn two_stars_are_one_label_or_more() {
    takes("**.ipfs.io", &["a.ipfs.io", "a.b.ipfs.io", "a.b.c.ipfs.io"], &["ipfs.io", "io"]);
    takes("**.ipfs.io", &[], &LOOKALIKES);
}

#[test]
fn a_leading_dot_is_the_name_and_everything_below() {
    takes(".ipfs.io", &["ipfs.io", "a.ipfs.io", "a.b.ipfs.io"], &["io", "bipfs.io"]);
    takes(".ipfs.io", &[], &LOOKALIKES);
    takes(".good.test", &["a.b.good.test"], &["xgood.test", "good.test.evil.test"]);
}

#[test]
fn the_root_takes_every_name() {
    takes("**", &["io", "a.b.ipfs.io"], &["203.0.113.7"]);
    takes("*", &["io"], &["ipfs.io"]);
}

#[test]
fn globs_stay_inside_their_label() {
    takes(
        "bor[0-9].golem.network",
        &["bor0.golem.network", "bor9.golem.network"],
        &["bor.golem.network", "bor10.golem.network", "bora.golem.network", "x.bor1.golem.network"],
    );
    takes("{a,b}.x.io", &["a.x.io", "b.x.io"], &["c.x.io", "ab.x.io", "x.io", "a.b.x.io"]);
    takes("api-*.x.io", &["api-1.x.io", "api-a-b.x.io"], &["api-1.y.x.io", "api.x.io", "a.api-1.x.io", "api-1.xx.io"]);
    takes("a?.x.io", &["ab.x.io", "a1.x.io"], &["a.x.io", "abc.x.io", "a.b.x.io"]);
    takes("*a*b*.x.io", &["ab.x.io", "1a2b3.x.io"], &["a.x.io", "a.b.x.io", "ba.x.io"]);
    takes("api.*.x.io", &["api.eu.x.io"], &["api.x.io", "api.a.b.x.io"]);
    takes("a-**-b.x.io", &["a-1-b.x.io"], &["a-1.2-b.x.io"]);
    takes("x.**a.io", &["x.a.io", "x.ba.io"], &["x.b.a.io", "x.y.ba.io"]);
    takes(
        "cdn.{eu-*,us}.[a-c]?.io",
        &["cdn.eu-1.ax.io", "cdn.us.c0.io"],
        &["cdn.eu.ax.io", "cdn.us.dx.io", "cdn.a.b.us.ax.io"],
    );
    takes("example.*", &["example.io", "example.com"], &["example", "example.co.uk", "a.example.io"]);
    takes("*-17-*.x.io", &["a-17-b.x.io", "x17-17-17-x.x.io"], &["a-18-b.x.io", "a-17.b.x.io"]);
}

#[test]
fn globs_below_take_labels_in_front() {
    takes("**.api-*.x.io", &["a.api-1.x.io", "a.b.api-1.x.io"], &["api-1.x.io", "api-1.a.x.io"]);
    takes(".api-*.x.io", &["api-1.x.io", "a.api-1.x.io", "a.b.api-1.x.io"], &["api-1.a.x.io", "aapi-1.x.io"]);
    takes("**.{a,b}.x.io", &["c.a.x.io"], &["a.x.io", "c.x.io"]);
    takes(".{a,b}.x.io", &["c.a.x.io", "a.x.io", "d.c.b.x.io"], &["c.x.io"]);
}

#[test]
fn a_regex_takes_whole_names() {
    takes(r"/bor[0-9]+\.golem\.network/", &["bor12.golem.network"], &["xbor1.golem.network", "bor1.golem.network.x"]);
    takes("/a|b$/", &["a", "b"], &["ab", "xb", "a.b"]);
    takes("/ipfs.io/", &["ipfs.io", "ipfs-io"], &["aipfs.io"]);
}

#[test]
fn addresses_are_for_flows_that_ask_for_an_address() {
    takes("203.0.113.7", &["203.0.113.7"], &["203.0.113.8", "a.io", "[2001:db8::1]"]);
    takes("203.0.113.0/24", &["203.0.113.0", "203.0.113.255"], &["203.0.114.0"]);
    takes("[2001:db8::]/32", &["[2001:db8::1]", "[2001:db8:ffff::1]"], &["[2001:db9::1]", "203.0.113.7"]);
    takes("203.0.113.7", &["[::ffff:203.0.113.7]"], &[]);
    takes(r"/.*/", &["a.io"], &["203.0.113.7"]);
}
