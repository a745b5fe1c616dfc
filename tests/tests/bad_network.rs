//! The path between source and target loses, duplicates and reorders packets: everything arrives whole and once all the
//! same.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lab::{
    Family, Lab, Mirror, MirrorOptions,
    bad_path::{BadPath, Weather},
    chance::binomial,
    http::{Limit, Load, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// Several time-outs in a row are to be expected now and then: up to fifteen seconds until a SYN is through, as long
/// for its answer, and three seconds for each piece of data that is lost four times.
const PATIENCE: Duration = Duration::from_secs(300);

/// 10,000 small requests on many connections, then ten uploads of 10 MB, of which the target must have every octet;
/// less without `LAB_FULL_MATRIX`.
fn everything_arrives_through(weather: Weather) {
    let full = std::env::var_os("LAB_FULL_MATRIX").is_some();
    let (requests, uploads) = if full { (10_000, 10) } else { (3_000, 3) };
    let lab = Lab::bridge().unwrap();
    let path = BadPath::new(&lab, weather).unwrap();
    let live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    // The uploads come at the speed of the machine, and must find room until the path has carried them.
    let tcpcopy = ["--ring-size", "128M"].map(str::to_owned).to_vec();
    let mirror = Mirror::start(&lab, MirrorOptions { tcpcopy, ..MirrorOptions::default() }).unwrap();
    let began = Instant::now();
    let mut answered = Vec::new();
    for (family, style) in [
        (Family::V4, Load::keep_alive as fn(_, _, _) -> _),
        (Family::V6, Load::keep_alive),
        (Family::V4, Load::per_request),
    ] {
        let load = style(lab.source.socket(family, LIVE_PORT), 64, Limit::Requests(requests / 3 + 1));
        answered.extend(succeeding(load, &lab));
    }
    let small = answered.len();
    target.wait_for_requests(small, PATIENCE);
    let for_requests = began.elapsed();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), uploads as usize, Limit::Requests(uploads));
    answered.extend(succeeding(Load { method: Method::Post(10_000_000), ..load }, &lab));
    target.wait_for_uploads(uploads as usize, PATIENCE);
    let for_uploads = began.elapsed() - for_requests;
    let fates = path.fates();
    let outcome = mirror.stop().unwrap();
    println!(
        "{weather:?}: {small} requests took {for_requests:.1?}, {uploads} uploads of 10 MB {for_uploads:.1?}; {fates:?}"
    );

    let mut times = BTreeMap::<u64, i64>::new();
    answered.iter().for_each(|id| *times.entry(*id).or_default() -= 1);
    target.arrivals().iter().for_each(|arrival| *times.entry(arrival.id).or_default() += 1);
    times.retain(|_, n| *n != 0);
    assert!(times.is_empty(), "{} were lost or came twice: {times:?}\n{}", times.len(), outcome.table);
    assert_eq!(target.uploads(), live.uploads(), "{}", outcome.table);
    assert_eq!(target.uploads().len() as u64, uploads);
    let [to, from] = fates;
    for (direction, fate) in [("to the target", to), ("from the target", from), ("both ways", to + from)] {
        let frames = fate.passed + fate.lost;
        for (what, happened, of, chance) in [
            ("lost", fate.lost, frames, weather.lose),
            ("duplicated", fate.duplicated, fate.passed, weather.duplicate),
            ("reordered", fate.reordered, fate.passed, weather.reorder),
        ] {
            let expected = binomial(of, f64::from(chance) / 1000.0);
            assert!(expected.contains(&happened), "{direction}: {happened} of {of} frames {what}, not {expected:?}");
            let shows = *expected.start() > 0 || chance == 0 || direction != "both ways";
            assert!(shows, "{of} frames are too few to show that any are {what}");
        }
    }
    outcome.assert_no_leak();
}

fn succeeding(load: Load, lab: &Lab) -> Vec<u64> {
    let report = load.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    report.answered
}

#[test]
fn one_percent_of_loss() {
    let _guard = laboratory!(400);
    everything_arrives_through(Weather { lose: 10, seed: 1, ..Weather::default() });
}

#[test]
fn five_percent_of_loss() {
    let _guard = laboratory!(400);
    everything_arrives_through(Weather { lose: 50, seed: 2, ..Weather::default() });
}

#[test]
fn loss_duplication_and_reordering() {
    let _guard = laboratory!(400);
    everything_arrives_through(Weather { lose: 10, duplicate: 20, reorder: 30, seed: 3, ..Weather::default() });
}
