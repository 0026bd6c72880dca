use proptest::prelude::*;

use super::*;

/// Netlink and generic netlink headers.
const HEADERS: usize = 20;

fn at(text: &str, protocol: u8) -> Identity {
    let at: SocketAddr = text.parse().unwrap();
    Identity::Address(Virtual {
        ip: at.ip(),
        protocol,
        port: at.port(),
    })
}

/// The bytes of attributes as `struct nlattr` lays them out, on a little-endian machine.
#[cfg(target_endian = "little")]
#[test]
fn messages_are_what_the_kernel_reads() {
    let service = Service {
        identity: at("10.96.0.1:80", 6),
        scheduler: "rr".into(),
        flags: Flags::default(),
        persistence: Some(Persistence {
            seconds: 10_800,
            prefix: 32,
        }),
    };
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        // Length 128, type 0x1c (the family), flags request and ack, sequence and port zero.
        &[128, 0, 0, 0, 0x1c, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        // NEW_SERVICE, version 1.
        &[1, 1, 0, 0],
        // SERVICE, nested.
        &[108, 0, 1, 0x80],
        &[6, 0, 1, 0, 2, 0, 0, 0],
        &[6, 0, 2, 0, 6, 0, 0, 0],
        &[20, 0, 3, 0, 10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 4, 0, 0, 80, 0, 0],
        &[7, 0, 6, 0, b'r', b'r', 0, 0],
        &[12, 0, 7, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        &[8, 0, 8, 0, 0x30, 0x2a, 0, 0],
        &[8, 0, 9, 0, 0xff, 0xff, 0xff, 0xff],
    ].concat();
    let mut expected = expected;
    let length = u8::try_from(expected.len()).unwrap();
    (expected[0], expected[20]) = (length, length - 20);
    assert_eq!(op(0x1c, &Op::AddService(service), NLM_F_ACK), expected);

    let to = Destination::masquerade("[fd00::5]:8080".parse().unwrap(), 3);
    #[rustfmt::skip]
    let mut expected: Vec<u8> = [
        &[0, 0, 0, 0, 0x1c, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        // SET_DEST
        &[6, 1, 0, 0],
        &[48, 0, 1, 0x80],
        &[6, 0, 1, 0, 10, 0, 0, 0],
        &[6, 0, 2, 0, 17, 0, 0, 0],
        &[20, 0, 3, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[6, 0, 4, 0, 0, 53, 0, 0],
        &[72, 0, 2, 0x80],
        &[20, 0, 1, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        &[6, 0, 2, 0, 0x1f, 0x90, 0, 0],
        &[6, 0, 11, 0, 10, 0, 0, 0],
        &[8, 0, 3, 0, 0, 0, 0, 0],
        &[8, 0, 4, 0, 3, 0, 0, 0],
        &[8, 0, 5, 0, 0, 0, 0, 0],
        &[8, 0, 6, 0, 0, 0, 0, 0],
    ].concat();
    expected[0] = u8::try_from(expected.len()).unwrap();
    let message = op(0x1c, &Op::SetDestination(at("[fd00::1]:53", 17), to), 0);
    assert_eq!(message, expected);
}

#[test]
fn netmasks_are_masks_for_ipv4_and_lengths_for_ipv6() {
    let netmask = |identity, persistence| {
        let service = Service {
            identity,
            scheduler: "rr".into(),
            flags: Flags::default(),
            persistence,
        };
        let message = op(1, &Op::AddService(service), 0);
        let body = Reader::new(&message[HEADERS..]).find(command::SERVICE).unwrap();
        Reader::new(body).find(service::NETMASK).unwrap().to_vec()
    };
    let stay = |prefix| Some(Persistence { seconds: 1, prefix });
    let (v4, v6) = (at("10.0.0.1:1", 6), at("[fd00::1]:1", 6));
    assert_eq!(netmask(v4, None), [255, 255, 255, 255]);
    assert_eq!(netmask(v4, stay(24)), [255, 255, 255, 0]);
    assert_eq!(netmask(v4, stay(0)), [0; 4]);
    assert_eq!(netmask(v6, None), 128u32.to_ne_bytes());
    assert_eq!(netmask(v6, stay(64)), 64u32.to_ne_bytes());
}

#[test]
fn what_is_cut_short_is_not_read() {
    let service = Service {
        identity: at("10.96.0.1:80", 6),
        scheduler: "wlc".into(),
        flags: Flags::SCHED_1,
        persistence: None,
    };
    let message = op(1, &Op::AddService(service.clone()), 0);
    let body = &message[HEADERS..];
    assert_eq!(read_service(body), Some(service));
    for length in 0..body.len() {
        assert_eq!(read_service(&body[..length]), None, "{length} bytes");
    }
}

fn identities() -> impl Strategy<Value = Identity> {
    let family = prop_oneof![Just(Family::Ip), Just(Family::Ip6)];
    prop_oneof![
        3 => (any::<IpAddr>(), any::<u8>(), any::<u16>())
            .prop_map(|(ip, protocol, port)| Identity::Address(Virtual { ip, protocol, port })),
        1 => (family, 1u32..).prop_map(|(family, mark)| Identity::Mark { family, mark }),
    ]
}

proptest! {
    #[test]
    fn services_come_back(
        identity in identities(),
        name in "[a-z]{1,15}",
        flags in 0u32..16,
        seconds in proptest::option::of(any::<u32>()),
        prefix in 0u8..=32,
    ) {
        let service = Service {
            identity,
            scheduler: name.into(),
            flags: Flags(flags << 2),
            persistence: seconds.map(|seconds| Persistence { seconds, prefix }),
        };
        let message = op(1, &Op::SetService(service.clone()), 0);
        prop_assert_eq!(read_service(&message[HEADERS..]), Some(service));
    }

    #[test]
    fn destinations_come_back(
        identity in identities(),
        at in any::<SocketAddr>(),
        weight in any::<u32>(),
        bounds in any::<(u32, u32)>(),
    ) {
        // Addresses in a message have no scope and flow.
        let at = SocketAddr::new(at.ip(), at.port());
        let to = Destination { weight, upper: bounds.0, lower: bounds.1, ..Destination::masquerade(at, 0) };
        let message = op(1, &Op::AddDestination(identity, to), 0);
        let read = read_destination(&message[HEADERS..], Family::Ip);
        prop_assert_eq!(read, Some((to, Connections::default())));
    }

    #[test]
    fn no_bytes_make_the_reader_fall(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (read_service(&bytes), read_destination(&bytes, Family::Ip6), read_info(&bytes), read_timeouts(&bytes));
    }
}
