//! Transactions of nf_tables: whole or not at all, and read back.

use cni_netlink::Namespace;
use cni_netlink::nft::{
    ChainKind, DataKind, Element, Expression, Family, Hook, Meta, Nftables, Payload, Policy, Register, Reject, Set,
    SetData, Transaction, Value, Verdict,
};

const KEY: [DataKind; 3] = [DataKind::Ipv4, DataKind::Protocol, DataKind::Port];

fn key(number: u32) -> Vec<u8> {
    let mut key = number.to_be_bytes().to_vec();
    key.extend_from_slice(&[6, 0, 0, 0, 0, 80, 0, 0]);
    key
}

fn layout() -> Transaction {
    let mut transaction = Transaction::new(Family::Inet);
    transaction
        .add_table("t")
        .add_chain("t", "one")
        .add_set("t", &Set { name: "services", key: &KEY, data: SetData::Verdict, is_dynamic: false })
        .add_set(
            "t",
            &Set {
                name: "endpoints",
                key: &KEY,
                data: SetData::Fields(&[DataKind::Ipv4, DataKind::Port]),
                is_dynamic: false,
            },
        )
        .add_base_chain("t", "pre", ChainKind::Nat, (Hook::Prerouting, -100, Policy::Accept), b"note");
    transaction.add_rule(
        "t",
        "pre",
        &[
            Expression::Meta { key: Meta::NfProto, to: Register(0) },
            Expression::equals(Register(0), [2]),
            Expression::Payload { field: Payload::Ip4Destination, to: Register(0) },
            Expression::Meta { key: Meta::L4Proto, to: Register(1) },
            Expression::Payload { field: Payload::DestinationPort, to: Register(2) },
            Expression::VerdictMap { map: "services".into(), key: Register(0) },
        ],
    );
    transaction.add_rule(
        "t",
        "one",
        &[
            Expression::Payload { field: Payload::Ip4Destination, to: Register(0) },
            Expression::Meta { key: Meta::L4Proto, to: Register(1) },
            Expression::Payload { field: Payload::DestinationPort, to: Register(2) },
            Expression::Random { modulus: 3, to: Register(3) },
            Expression::Map { map: "endpoints".into(), key: Register(0), to: Register(8) },
            Expression::Dnat4 { address: Register(8), port: Register(9) },
        ],
    );
    transaction
}

#[test]
fn chains_and_elements_read_back_what_was_written() {
    let space = Namespace::create().unwrap();
    let mut nft = Nftables::open_in(&space).unwrap();
    nft.apply(layout()).unwrap();
    let mut elements = Transaction::new(Family::Inet);
    let services = (0..5000).map(|number| Element::new(key(number), Value::Verdict(Verdict::Goto("one".into()))));
    elements.add_elements("t", "services", services);
    let endpoint =
        Element { comment: Some("mine".into()), ..Element::new(key(1), Value::Bytes(vec![10, 0, 0, 1, 0, 80, 0, 0])) };
    elements.add_elements("t", "endpoints", [endpoint]);
    nft.apply(elements).unwrap();
    let chain = nft.chain(Family::Inet, "t", "pre").unwrap().unwrap();
    assert_eq!((chain.uses, chain.note.as_slice()), (1, &b"note"[..]));
    let found = nft.elements(Family::Inet, "t", "services").unwrap();
    assert_eq!(found.len(), 5000);
    assert_eq!(found[0].chain.as_deref(), Some("one"));
    let found = nft.elements(Family::Inet, "t", "endpoints").unwrap();
    assert_eq!((&found[0].key, &found[0].value), (&key(1), &vec![10, 0, 0, 1, 0, 80, 0, 0]));
    assert_eq!(found[0].comment.as_deref(), Some("mine"));
    assert_eq!(nft.tables(Family::Inet).unwrap(), ["t"]);

    let mut remove = Transaction::new(Family::Inet);
    remove.remove_table("t").remove_table("never there");
    nft.apply(remove).unwrap();
    assert!(nft.tables(Family::Inet).unwrap().is_empty());
    assert_eq!(nft.chain(Family::Inet, "t", "pre").unwrap(), None);
    assert!(nft.elements(Family::Inet, "t", "services").unwrap().is_empty());
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_step() {
    let space = Namespace::create().unwrap();
    let mut nft = Nftables::open_in(&space).unwrap();
    let mut bad = layout();
    bad.add_rule("t", "nowhere", &[Expression::Reject(Reject::TcpReset)]);
    bad.add_chain("t", "later");
    let error = nft.apply(bad).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("add a rule to chain nowhere"), "{error}");
    assert!(nft.tables(Family::Inet).unwrap().is_empty());
    nft.apply(layout()).unwrap();
    let missing = Element::new(key(9), Value::Nothing);
    let mut delete = Transaction::new(Family::Inet);
    delete.delete_elements("t", "services", [missing]);
    assert_eq!(nft.apply(delete).unwrap_err().errno(), Some(libc::ENOENT));
}

#[test]
fn who_listens_hears_of_changes_by_others() {
    use cni_netlink::monitor::{Gone, Heard, Object, RouteMonitor, TableMonitor};
    let namespace = Namespace::create().unwrap();
    let mut tables = namespace.within(TableMonitor::open).unwrap().unwrap();
    let mut routes = namespace.within(RouteMonitor::open).unwrap().unwrap();
    assert_eq!((tables.hear().unwrap(), routes.hear().unwrap()), (None, None), "nothing yet, and no waiting");
    let mut transaction = Transaction::new(Family::Inet);
    transaction.add_table("t").remove_table("t");
    Nftables::open_in(&namespace).unwrap().apply(transaction).unwrap();
    let mut heard = Vec::new();
    while let Some(Heard::Changes(changes)) = tables.hear().unwrap() {
        heard.extend(changes);
    }
    let of_table = heard.iter().filter(|change| change.is_of(Family::Inet, "t") && change.object == Object::Table);
    assert!(of_table.clone().any(|change| !change.is_removal) && of_table.clone().any(|change| change.is_removal));

    let mut links = cni_netlink::Rtnetlink::open_in(&namespace).unwrap();
    links.apply(cni_netlink::Batch::default().create_bridge("b", None, None).delete_link("b")).unwrap();
    let mut heard = Vec::new();
    while let Some(Heard::Changes(changes)) = routes.hear().unwrap() {
        heard.extend(changes);
    }
    assert!(heard.contains(&Gone::Link("b".into())), "{heard:?}");
}
