//! What a pod's network costs, in microseconds, alone and beside many others. Run by hand:
//! `cargo test --lib network::tests::measure -- --ignored --nocapture`

use super::*;

const ROUNDS: usize = 40;

#[derive(Default)]
struct Times {
    create: Vec<u128>,
    attach: Vec<u128>,
    detach: Vec<u128>,
    unpin: Vec<u128>,
}

fn timed<T>(times: &mut Vec<u128>, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    times.push(begun.elapsed().as_micros());
    done
}

fn show(what: &str, mut times: Vec<u128>) -> String {
    times.sort_unstable();
    format!("{what} {} / {}", times[times.len() / 2], times[times.len() * 9 / 10])
}

fn cycle(host: &Host, pause: Duration) -> Times {
    let mut times = Times::default();
    for i in 0..ROUNDS {
        let pod = timed(&mut times.create, || host.pod(&format!("m{i}")));
        timed(&mut times.attach, || host.attach(&pod));
        timed(&mut times.detach, || host.wait(host.network.detach(&pod.network)).unwrap());
        timed(&mut times.unpin, || drop(pod));
        std::thread::sleep(pause);
    }
    times
}

fn report(host: &Host, held: usize) {
    for (pause, name) in [(Duration::ZERO, "one after the other"), (Duration::from_millis(60), "60 ms apart")]
    {
        let t = cycle(host, pause);
        println!(
            "{held} held, {name}, p50 / p90: {}, {}, {}, {}",
            show("create", t.create),
            show("attach", t.attach),
            show("detach", t.detach),
            show("unpin", t.unpin),
        );
    }
}

#[test]
#[ignore = "measures"]
fn measure_in_parallel() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.subnet = "10.77.0.0/16".into());
        for workers in [1, 4] {
            let begun = Instant::now();
            std::thread::scope(|scope| {
                for worker in 0..workers {
                    let host = &host;
                    scope.spawn(move || {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                        for i in 0..400 / workers {
                            let pod = host.pod(&format!("p{worker}-{i}"));
                            runtime.block_on(host.network.attach(&pod.network)).unwrap();
                            runtime.block_on(host.network.detach(&pod.network)).unwrap();
                        }
                    });
                }
            });
            let rate = 400.0 / begun.elapsed().as_secs_f64();
            println!("{workers} at once: {rate:.0} pods/s come and go");
            eventually("links go", || links() == ["pwtest0"]);
        }
    });
}

#[test]
#[ignore = "measures"]
fn measure_cni() {
    in_a_namespace(|| {
        let host = Host::cni();
        host.configure("10-pw.conflist", &super::cni::conflist(host.dir.path()));
        let (mut attach, mut detach) = (Vec::new(), Vec::new());
        for i in 0..20 {
            let pod = host.pod(&format!("c{i}"));
            timed(&mut attach, || host.attach(&pod));
            timed(&mut detach, || host.wait(host.network.detach(&pod.network)).unwrap());
        }
        println!("bridge, host-local and portmap: {}, {}", show("attach", attach), show("detach", detach));
    });
}

#[test]
#[ignore = "measures"]
fn measure() {
    in_a_namespace(|| {
        let host = Host::new(|c| c.subnet = "10.77.0.0/16".into());
        report(&host, 0);
        let mut pods = Vec::new();
        for held in [200, 900] {
            while pods.len() < held {
                let pod = host.pod(&format!("h{}", pods.len()));
                host.attach(&pod);
                pods.push(pod);
            }
            report(&host, held);
            let mut times = Vec::new();
            let pins: Vec<_> = pods.iter().take(60).map(|p| &p.pin).collect();
            for _ in 0..10 {
                timed(&mut times, || assert!(Network::stats_of(&pins).iter().all(Result::is_ok)));
            }
            println!("{held} held: {}", show("stats of 60 pods", times));
        }
        for pod in &pods {
            host.wait(host.network.detach(&pod.network)).unwrap();
        }
    });
}
