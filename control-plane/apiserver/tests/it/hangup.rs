//! Clients that hang up in the middle of a write: what is stored is in the books.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::http::Caller;
use crate::server::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
}

/// Polls a request this often and drops it then.
async fn hang_up_after(polls: usize, request: impl Future) {
    let mut request = std::pin::pin!(request);
    for _ in 0..polls {
        if std::future::poll_fn(|context| std::task::Poll::Ready(request.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_given_once_whoever_hangs_up() {
    let server = Server::start().await;
    let mut caller = Caller::of(&server);
    for index in 0..60 {
        let name = format!("gone{index}");
        hang_up_after(1 + index % 12, caller.json("POST", SERVICES, service(&name))).await;
        if index % 3 == 0 {
            let uri = format!("{SERVICES}/{name}");
            hang_up_after(1 + index % 7, caller.json("DELETE", &uri, Value::Null)).await;
        }
    }
    for index in 0..20 {
        assert_eq!(caller.json("POST", SERVICES, service(&format!("stays{index}"))).await.0, 201);
    }
    let (_, list) = caller.get(SERVICES).await;
    let items = list["items"].as_array().unwrap();
    let addresses: BTreeSet<&str> = items.iter().filter_map(|one| one["spec"]["clusterIP"].as_str()).collect();
    let ports: BTreeSet<i64> = items.iter().filter_map(|one| one["spec"]["ports"][0]["nodePort"].as_i64()).collect();
    // The Service of the API server has an address and no port.
    assert_eq!((addresses.len(), ports.len()), (items.len(), items.len() - 1));
    assert!(items.len() > 20, "some of those that hung up had begun");
}
