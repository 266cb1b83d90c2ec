//! What a probe is given over a unix socket: one message with its task as JSON, and the sockets that only root can
//! make. Its answers are lines of JSON.

use super::super::addresses::{Addresses, Family};
use super::super::attempts::Context;
use super::super::capture::open;
use super::super::checks::{Task, gateway, reachable, tasks, untried};
use super::super::network::{Guests, Network, Untried};
use super::super::own_addresses;
use super::super::packet::Round;
use super::super::sockets::{Kind, Sockets};
use crate::cli::Failure;
use outgate::proof::{Check, Checked};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::Socket;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The longest task, in bytes.
const MAX_TASK: usize = 1 << 20;
/// The captures: at the sentinel, at the second guest, at the first.
const CAPTURES: usize = 3;
/// Most descriptors that come with a task: the captures, and of each family the sockets of [`Kind`] and two services.
const MOST: usize = 32;

/// The task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Assignment {
    tasks: Vec<Assigned>,
    families: Vec<OfFamily>,
    /// What guests must reach.
    pub(super) urls: Vec<String>,
    /// Whether the second guest is on the same link.
    share_link: bool,
    /// This machine's addresses.
    own: Vec<IpAddr>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Assigned {
    check: Check,
    family: Family,
    url: usize,
    /// Why it is not tried, if so.
    untried: Option<Untried>,
}

/// What one family takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct OfFamily {
    family: Family,
    addresses: Addresses,
    gateway: IpAddr,
    proxy: Option<SocketAddr>,
    admin_port: Option<u16>,
}

/// Sockets of this machine that no guest may reach, at the address that guests see first.
pub(super) type Services = Option<(TcpListener, UdpSocket)>;

/// The sockets of a task, in the order in which they are sent.
#[derive(Debug)]
pub(super) struct Handles {
    captures: Vec<Socket>,
    /// By family, as in [`Assignment::families`]; what could not be made is `None`.
    families: Vec<(Vec<Option<Socket>>, Services)>,
}

/// What a probe sends after each round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RoundReport {
    pub(super) checks: Vec<Checked>,
    /// Packets at the sentinel that no check sent.
    pub(super) other_packets: u64,
}

impl Assignment {
    /// Returns the task for the guests of an interface, as things are now.
    pub(super) fn new(network: &Network, guests: &Guests, urls: &[String]) -> Assignment {
        let of_interface = own_addresses(&guests.entry);
        let families = Family::BOTH.into_iter().filter_map(|family| {
            let addresses = *network.of(family).as_ref().ok()?;
            Some(OfFamily {
                family,
                addresses,
                gateway: gateway(family, &of_interface, addresses.host),
                proxy: reachable(&network.settings.listen.proxy, family).next(),
                admin_port: network.settings.listen.admin.map(|admin| admin.port()),
            })
        });
        let tasks = tasks(network, urls.len()).into_iter().map(|task| {
            let Task { check, family, url } = task;
            Assigned { check, family, url, untried: untried(task, network, guests) }
        });
        Assignment {
            tasks: tasks.collect(),
            families: families.collect(),
            urls: urls.to_vec(),
            share_link: guests.share_link,
            own: network.own.clone(),
        }
    }

    /// Opens the sockets of the task.
    ///
    /// # Errors
    /// If packets cannot be watched.
    pub(super) fn handles(&self, network: &Network, guests: &Guests) -> Result<Handles, Failure> {
        let captures = [&network.outside, &guests.second, &guests.first].map(|namespace| namespace.run(open));
        let captures = captures.into_iter().collect::<io::Result<Vec<Socket>>>();
        let captures = captures.map_err(|error| Failure::Failed(format!("packets cannot be watched: {error}")))?;
        let families = self.families.iter().map(|one| {
            let make = || Ok(Kind::of(one.family).map(|kind| kind.make(&one.addresses).ok()).into());
            let services =
                || Some((TcpListener::bind((one.gateway, 0)).ok()?, UdpSocket::bind((one.gateway, 0)).ok()?));
            (guests.first.run(make).unwrap_or_default(), services())
        });
        Ok(Handles { captures, families: families.collect() })
    }

    /// Returns the checks.
    pub(super) fn tasks(&self) -> Vec<(Task, Option<Untried>)> {
        let task = |one: &Assigned| {
            let Assigned { check, family, url, ref untried } = *one;
            (Task { check, family, url }, untried.clone())
        };
        self.tasks.iter().map(task).collect()
    }

    /// Returns the addresses of all families.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Addresses> {
        self.families.iter().map(|one| &one.addresses)
    }

    /// Returns this machine's addresses.
    pub(super) fn own(&self) -> Vec<IpAddr> {
        self.own.iter().copied().chain(self.addresses().map(|one| one.host)).collect()
    }

    /// Returns the addresses that packets of checks come from; after NAT it is this machine's.
    pub(super) fn senders(&self) -> Vec<IpAddr> {
        self.addresses().flat_map(|one| one.guests).chain(self.own()).collect()
    }

    /// Returns what the attempts of both families require in one round.
    pub(super) fn contexts(&self, given: &Given, round: &Arc<Round>) -> [Option<Arc<Context>>; 2] {
        Family::BOTH.map(|family| {
            let at = self.families.iter().position(|one| one.family == family)?;
            let (one, (sockets, services)) = (self.families.get(at)?, given.families.get(at)?);
            let services = services.as_ref().and_then(|(tcp, udp)| tcp.try_clone().ok().zip(udp.try_clone().ok()));
            Some(Arc::new(Context {
                proxy: one.proxy,
                admin_port: one.admin_port,
                sockets: Arc::clone(sockets),
                round: Arc::clone(round),
                addresses: one.addresses,
                share_link: self.share_link,
                gateway: one.gateway,
                services,
                urls: given.urls.clone(),
            }))
        })
    }
}

/// The message: which of [`Handles`] there are, beside the task.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    assignment: Assignment,
    /// By family: which sockets come with it, and whether the services do.
    sockets: Vec<(Vec<bool>, bool)>,
}

impl Handles {
    /// Sends the task and its sockets.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn send(&self, assignment: &Assignment, to: &mut UnixStream) -> io::Result<()> {
        let sockets = self
            .families
            .iter()
            .map(|(sockets, services)| (sockets.iter().map(Option::is_some).collect(), services.is_some()));
        let message = Message { assignment: assignment.clone(), sockets: sockets.collect() };
        let text = serde_json::to_vec(&message)?;
        let mut all: Vec<BorrowedFd<'_>> = self.captures.iter().map(AsFd::as_fd).collect();
        for (sockets, services) in &self.families {
            all.extend(sockets.iter().flatten().map(AsFd::as_fd));
            all.extend(services.iter().flat_map(|(tcp, udp)| [tcp.as_fd(), udp.as_fd()]));
        }
        let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(io::Error::other("too many sockets for one message"));
        }
        let sent = sendmsg(&*to, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
        if sent != length.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        to.write_all(&text)
    }
}

/// What a probe was given.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) captures: [Socket; CAPTURES],
    families: Vec<(Arc<Sockets>, Services)>,
    pub(super) urls: Vec<crate::cli::golem::probe::attempt::Wanted>,
}

/// Receives a task and its sockets.
///
/// # Errors
/// Those of the system, and if it is none.
pub(super) fn receive(from: &mut UnixStream) -> io::Result<(Assignment, Given)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut length = [0; 4];
    let received = recvmsg(&*from, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes != length.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut handles: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            handles.extend(rights);
        }
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_TASK {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    let Message { assignment, sockets } = serde_json::from_slice(&text)?;
    let mut handles = handles.into_iter();
    let mut next = || handles.next().ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof));
    let captures = [next()?, next()?, next()?].map(Socket::from);
    let mut families = Vec::new();
    for (one, (are_there, has_services)) in assignment.families.iter().zip(sockets) {
        let mut given = Vec::new();
        for (kind, _) in Kind::of(one.family).into_iter().zip(are_there).filter(|(_, is_there)| *is_there) {
            given.push((kind, Socket::from(next()?)));
        }
        let services = if has_services { Some((next()?.into(), next()?.into())) } else { None };
        families.push((Arc::new(Sockets::Given(given)), services));
    }
    Ok((assignment, Given { captures, families, urls: Vec::new() }))
}
