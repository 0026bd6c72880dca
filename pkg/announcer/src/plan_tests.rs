use super::*;

fn address() -> IpAddr {
    "172.30.0.240".parse().unwrap()
}

fn wanted() -> BTreeMap<IpAddr, Links> {
    BTreeMap::from([(address(), Links::All)])
}

const STRANGER: Mac = [6, 0, 0, 0, 0, 6];

/// What is done, and when, until the time is over.
fn run(claims: &mut Claims, from: Instant, time: Duration) -> Vec<String> {
    let end = from + time;
    let mut now = from;
    let mut text = Vec::new();
    loop {
        for operation in claims.operations(now, 100) {
            text.push(format!("{} {operation}", (now - from).as_millis()));
        }
        match claims.deadline() {
            Some(next) if next <= end => now = next.max(now),
            _ => return text,
        }
    }
}

#[test]
fn an_address_is_probed_claimed_and_announced() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    assert_eq!(claims.standing(address()), Err(NotAnnounced::Probing));
    let text = run(&mut claims, start, Duration::from_secs(10));
    assert_eq!(
        text,
        [
            "0 probe 172.30.0.240 on all links",
            "40 probe 172.30.0.240 on all links",
            "80 claim 172.30.0.240 on all links",
            "80 announce 172.30.0.240 on all links",
            "1180 announce 172.30.0.240 on all links",
            "2280 announce 172.30.0.240 on all links",
            "3380 announce 172.30.0.240 on all links",
            "4480 announce 172.30.0.240 on all links",
        ]
    );
    assert!(claims.owns(address()));
    assert_eq!(claims.deadline(), None);
}

#[test]
fn wanting_the_same_again_does_nothing() {
    let mut claims = Claims::new(false);
    let start = Instant::now();
    claims.want(start, &wanted());
    run(&mut claims, start, Duration::from_secs(10));
    claims.want(start, &wanted());
    assert!(run(&mut claims, start, Duration::from_secs(10)).is_empty());
}

#[test]
fn an_address_that_is_not_wanted_any_more_is_released_at_once() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    claims.want(start, &BTreeMap::new());
    assert!(
        run(&mut claims, start, Duration::from_secs(1)).is_empty(),
        "it was not claimed yet"
    );
    claims.want(start, &wanted());
    run(&mut claims, start, Duration::from_secs(1));
    claims.want(start, &BTreeMap::new());
    assert!(!claims.owns(address()));
    assert_eq!(
        run(&mut claims, start, Duration::from_secs(9)),
        ["0 release 172.30.0.240"]
    );
}

#[test]
fn other_links_are_asked_before_it_moves_there() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    run(&mut claims, start, Duration::from_secs(9));
    let other = Links::Named(BTreeSet::from(["eth1".to_string()]));
    claims.want(start, &BTreeMap::from([(address(), other)]));
    let text = run(&mut claims, start, Duration::from_millis(100));
    assert_eq!(
        text,
        [
            "0 release 172.30.0.240",
            "0 probe 172.30.0.240 on eth1",
            "40 probe 172.30.0.240 on eth1",
            "80 claim 172.30.0.240 on eth1",
            "80 announce 172.30.0.240 on eth1",
        ]
    );
}

#[test]
fn a_node_that_still_answers_is_waited_for_without_a_report() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    claims.operations(start, 9);
    claims.contested(start, address(), [2; 6], Some("n2"));
    let text = run(&mut claims, start, Duration::from_millis(250));
    assert_eq!(text[0], "100 probe 172.30.0.240 on all links");
    assert_eq!(text[2], "180 claim 172.30.0.240 on all links");
}

#[test]
fn a_node_that_never_stops_to_answer_is_reported() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    let mut reports = Vec::new();
    for i in 0..100 {
        let now = start + Duration::from_millis(100 * i);
        let operations = claims.operations(now, 9);
        reports.extend(
            operations
                .iter()
                .filter(|o| matches!(o, Operation::Report(..)))
                .map(|o| o.to_string()),
        );
        claims.contested(now, address(), [2; 6], Some("n2"));
    }
    assert_eq!(
        reports,
        ["report 172.30.0.240 answered by node n2 (02:02:02:02:02:02), not claimed"]
    );
}

#[test]
fn an_owner_defends_itself_against_a_stranger_but_not_endlessly() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    claims.want(start, &wanted());
    run(&mut claims, start, Duration::from_secs(9));
    let now = start + Duration::from_secs(20);
    claims.contested(now, address(), STRANGER, None);
    let text = run(&mut claims, now, Duration::from_secs(1));
    assert_eq!(
        text,
        [
            "0 report 172.30.0.240 answered by 06:00:00:00:00:06, defended",
            "0 announce 172.30.0.240 on all links",
        ]
    );
    claims.contested(now + Duration::from_secs(9), address(), STRANGER, None);
    assert!(run(&mut claims, now + Duration::from_secs(9), Duration::from_secs(1)).is_empty());
}

#[test]
fn many_addresses_are_claimed_in_batches() {
    let mut claims = Claims::new(true);
    let start = Instant::now();
    let many: BTreeMap<IpAddr, Links> = (0..1000u32)
        .map(|i| (IpAddr::V4((0x0a00_0000 + i).into()), Links::All))
        .collect();
    claims.want(start, &many);
    let mut batches = 0;
    while claims.deadline() == Some(start) {
        assert!(claims.operations(start, 256).len() <= 256);
        batches += 1;
    }
    assert_eq!(batches, 4);
    assert_eq!(run(&mut claims, start, Duration::from_secs(20)).len(), 1000 * 7);
    claims.want(start, &BTreeMap::new());
    assert_eq!(claims.operations(start, 256).len(), 1000, "releases do not wait");
    assert_eq!(claims.deadline(), None);
}
