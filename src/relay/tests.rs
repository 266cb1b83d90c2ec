use super::*;
use crate::guest::GuestCounters;
use crate::listener::ListenerLabel;
use crate::reason::Reason;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn flow() -> Flow {
    Flow::new(
        1,
        ListenerLabel::Transparent,
        "192.0.2.1:40000".parse().unwrap(),
        Arc::new(GuestCounters::for_tests(None)),
    )
}

/// Nobody ends it, it may be idle for ever, and a long life is not reported.
fn supervision(flow: &Flow) -> Supervision<'_> {
    Supervision { flow, around: None, idle: None, long_lived: &|| () }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn bytes_read_before_go_first_and_each_half_close_is_passed_on() {
    let (mut guest, near) = pair().await;
    let (far, mut origin) = pair().await;
    let mut tunnel = Tunnel::new(near, far, b"hello ".to_vec(), b"banner ".to_vec());
    let flow = flow();
    let relay = async {
        let end = tunnel.run(supervision(&flow)).await;
        drop(tunnel);
        end
    };
    let ends = async {
        guest.write_all(b"world").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut got = Vec::new();
        origin.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello world");
        origin.write_all(b"answer").await.unwrap();
        drop(origin);
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"banner answer");
    };
    let (end, ()) = tokio::join!(relay, ends);
    assert!(matches!(end, End::Closed));
    assert_eq!(flow.carried(), (11, 13));
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let (mut guest, near) = pair().await;
    let (far, mut origin) = pair().await;
    let data: Vec<u8> = (0..20_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = data.clone();
    let sender = async move {
        origin.write_all(&copy).await.unwrap();
        drop(origin);
    };
    let flow = flow();
    let relay =
        async { Tunnel::new(near, far, Vec::new(), Vec::new()).guest_ended(true).run(supervision(&flow)).await };
    let reader = async {
        let mut got = Vec::new();
        let mut part = vec![0; 300_000];
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match guest.read(&mut part).await.unwrap() {
                0 => break got,
                n => got.extend_from_slice(&part[..n]),
            }
        }
    };
    let ((), _, got) = tokio::join!(sender, relay, reader);
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    assert_eq!(scratch::kept_by_thread(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_tunnel_ends_after_the_idle_time_and_is_reported_at_a_minute() {
    let (_guest, near) = pair().await;
    let (far, _origin) = pair().await;
    let start = Instant::now();
    let long = OnceLock::new();
    let flow = flow();
    let end = Tunnel::new(near, far, Vec::new(), Vec::new())
        .run(Supervision {
            idle: Some(Duration::from_secs(300)),
            long_lived: &|| long.set(start.elapsed()).expect("it is reported once"),
            ..supervision(&flow)
        })
        .await;
    assert!(matches!(end, End::Idle));
    assert_eq!(start.elapsed().as_secs(), 300);
    assert_eq!(long.get().unwrap().as_secs(), 60);
}

#[tokio::test]
async fn a_tunnel_is_reset_on_both_sides_when_its_flow_or_the_one_around_it_is_revoked() {
    for which in 0..2 {
        let (mut guest, near) = pair().await;
        let (far, mut origin) = pair().await;
        let flows = [flow(), flow()];
        flows[which].revoke(Reason::Revoked);
        let end = Tunnel::new(near, far, Vec::new(), Vec::new())
            .run(Supervision { around: Some(&flows[1]), ..supervision(&flows[0]) })
            .await;
        assert!(matches!(end, End::Stopped));
        assert!(guest.read(&mut [0; 1]).await.is_err());
        assert!(origin.read(&mut [0; 1]).await.is_err());
    }
}

/// Streams as fast as a thread can carry them, for as long as this lives.
struct Streams {
    /// They count the bytes.
    flows: Vec<Arc<Flow>>,
    stop: Arc<AtomicBool>,
    ends: Vec<std::thread::JoinHandle<()>>,
}

impl Streams {
    /// Starts them on the runtime of this thread; sources and sinks have their own threads.
    async fn start(count: usize) -> Streams {
        let mut streams = Streams { flows: Vec::new(), stop: Arc::default(), ends: Vec::new() };
        for _ in 0..count {
            let (guest, near) = pair().await;
            let (far, origin) = pair().await;
            let [mut sink, mut source] = [guest, origin].map(|stream| {
                let stream = stream.into_std().unwrap();
                stream.set_nonblocking(false).unwrap();
                stream
            });
            let stop = Arc::clone(&streams.stop);
            streams.ends.push(std::thread::spawn(move || {
                let block = vec![7; 1 << 20];
                while !stop.load(Ordering::Relaxed) && std::io::Write::write(&mut source, &block).is_ok() {}
            }));
            streams.ends.push(std::thread::spawn(move || {
                let mut block = vec![0; 1 << 20];
                while matches!(std::io::Read::read(&mut sink, &mut block), Ok(1..)) {}
            }));
            let flow = Arc::new(flow());
            streams.flows.push(Arc::clone(&flow));
            tokio::spawn(async move { Tunnel::new(near, far, Vec::new(), Vec::new()).run(supervision(&flow)).await });
        }
        streams
    }

    /// The bytes that went to the guests.
    fn moved(&self) -> u64 {
        self.flows.iter().map(|flow| flow.carried().1).sum()
    }
}

#[tokio::test]
async fn a_byte_goes_on_while_fast_streams_of_its_thread_move_little_however_many_they_are() {
    for count in [8, 40] {
        let streams = Streams::start(count).await;
        let (mut guest, near) = pair().await;
        let (far, mut origin) = pair().await;
        tokio::spawn(async move {
            let flow = flow();
            Tunnel::new(near, far, Vec::new(), Vec::new()).run(supervision(&flow)).await
        });
        // Until all of them move what they can.
        while streams.moved() < 256 << 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut beside = Vec::new();
        for _ in 0..15 {
            let before = streams.moved();
            guest.write_all(b"?").await.unwrap();
            origin.read_exact(&mut [0; 1]).await.unwrap();
            beside.push(streams.moved() - before);
        }
        beside.sort_unstable();
        // A write, a look, a move, a look and a read: a few turns of one stream. If each stream had its turn before
        // the runtime looks, it would be that many times more, and with a task that wakes itself 61 times.
        assert!(beside[7] < 8 << 20, "{count} streams moved {} MiB", beside[7] >> 20);
        streams.stop.store(true, Ordering::Relaxed);
        let ends = streams.ends;
        // Sources end by themselves, sinks by the end that the relay passes on.
        while !ends.iter().all(std::thread::JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(fairness::waiting(), 0);
}
