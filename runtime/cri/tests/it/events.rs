//! GetContainerEvents: each change of a pod and its containers, with the whole status at its instant.

use runtime_cri_api::v1::*;

use crate::server::{Server, shell};

#[tokio::test]
async fn a_life_is_told_in_order() {
    let mut server = Server::start().await;
    let mut events = server.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let pod = server.run_pod(server.pod("web")).await;
    let id = server.run(&pod, shell("main", "exit 4")).await;
    server.until_exited(&id).await;
    server.remove_container(&id).await.unwrap();
    server.stop_pod(&pod).await.unwrap();
    server.remove_pod(&pod).await.unwrap();
    use ContainerEventType::*;
    let expect = [
        (&pod, ContainerCreatedEvent),
        (&pod, ContainerStartedEvent),
        (&id, ContainerCreatedEvent),
        (&id, ContainerStartedEvent),
        (&id, ContainerStoppedEvent),
        (&id, ContainerDeletedEvent),
        (&pod, ContainerStoppedEvent),
        (&pod, ContainerDeletedEvent),
    ];
    let mut found = Vec::new();
    while found.len() < expect.len() {
        let event = events.message().await.unwrap().unwrap();
        if event.container_event_type() == ContainerStoppedEvent && event.container_id == id {
            assert_eq!(event.containers_statuses[0].exit_code, 4);
        }
        found.push((event.container_id.clone(), event.container_event_type()));
    }
    // A short life may be over before its start is told.
    let key = |(id, kind): &(String, ContainerEventType)| (id.clone(), *kind as i32);
    found[2..5].sort_by_key(key);
    let expect: Vec<_> = expect.into_iter().map(|(id, kind)| (id.clone(), kind)).collect();
    assert_eq!(found, expect);
}
