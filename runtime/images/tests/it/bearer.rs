//! Bearer tokens: the challenge, the token service, what it is told and what it is not.

use runtime_images::{Auth, Kind, Progress};

use crate::fake_registry::{Answer, FakeRegistry, Request};
use crate::sample::{Sample, Store, told};

/// A registry that wants the token "t-<account>" and a token service beside it.
fn guarded(scope: Option<&'static str>) -> FakeRegistry {
    FakeRegistry::with(move |request, honest| {
        let host = request.headers["host"].clone();
        if request.path.starts_with("/token") {
            return token(request);
        }
        let authorization = request.headers.get("authorization").map(String::as_str);
        if matches!(authorization, Some("Bearer t-ann" | "Bearer t-refreshed" | "Bearer ready-made")) {
            return honest;
        }
        let scope = scope.map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"shelf\"{scope}");
        Answer::of(401, br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#)
            .header("WWW-Authenticate", &challenge)
    })
}

fn token(request: &Request) -> Answer {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    match request.headers.get("authorization").map(String::as_str) {
        // ann:secret
        Some("Basic YW5uOnNlY3JldA==") => Answer::of(200, br#"{"token":"t-ann","expires_in":60}"#),
        Some(_) => Answer::of(401, br#"{"details":"incorrect username or password"}"#),
        None if request.method == "POST" && body.contains("refresh_token=r-1") => {
            Answer::of(200, br#"{"access_token":"t-refreshed"}"#)
        }
        None => Answer::of(200, br#"{"token":"t-anonymous"}"#),
    }
}

async fn pull(registry: &FakeRegistry, auth: Option<Auth>) -> Result<runtime_images::Image, runtime_images::Error> {
    let store = Store::new();
    store.images.pull(&registry.reference("team/app:v1"), auth, Progress::silent()).await
}

#[tokio::test]
async fn each_kind_of_credentials() {
    for scope in [None, Some("repository:team/app:pull")] {
        let registry = guarded(scope);
        registry.add("team/app", "v1", &Sample::small());
        pull(&registry, Some(Auth::basic("ann", "secret"))).await.unwrap();
        pull(&registry, Some(Auth::IdentityToken("r-1".into()))).await.unwrap();
        pull(&registry, Some(Auth::RegistryToken("ready-made".into()))).await.unwrap();
        let asked = registry.seen().into_iter().find(|r| r.path.starts_with("/token?")).unwrap();
        assert!(
            asked.path.contains("service=shelf&scope=repository%3Ateam%2Fapp%3Apull&account=ann"),
            "{}",
            asked.path
        );
    }
}

#[tokio::test]
async fn one_token_serves_the_whole_pull() {
    let registry = guarded(None);
    registry.add("team/app", "v1", &Sample::small());
    pull(&registry, Some(Auth::basic("ann", "secret"))).await.unwrap();
    let tokens = registry.seen().iter().filter(|request| request.path.starts_with("/token")).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn refusals() {
    let registry = guarded(None);
    registry.add("team/app", "v1", &Sample::small());
    let wrong = pull(&registry, Some(Auth::basic("ann", "wrong"))).await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Unauthorized);
    assert!(told(&wrong).contains("incorrect username or password"), "{}", told(&wrong));
    let anonymous = pull(&registry, None).await.unwrap_err();
    assert_eq!(anonymous.kind(), Kind::Unauthorized);
    assert!(told(&anonymous).contains("wants credentials for team/app"), "{}", told(&anonymous));
}

#[tokio::test]
async fn a_redirect_to_another_host_gets_no_credentials() {
    let elsewhere = FakeRegistry::start();
    let target = elsewhere.address.clone();
    let registry = FakeRegistry::with(move |request, honest| {
        if !request.headers.contains_key("authorization") {
            return Answer::of(401, b"").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if request.path.contains("/blobs/") {
            return Answer::of(307, b"").header("Location", &format!("http://{target}{}", request.path));
        }
        honest
    });
    let sample = Sample::small();
    registry.add("team/app", "v1", &sample);
    elsewhere.add("team/app", "v1", &sample);
    pull(&registry, Some(Auth::basic("ann", "secret"))).await.unwrap();
    assert!(elsewhere.seen().len() >= 3);
    assert!(elsewhere.seen().iter().all(|request| !request.headers.contains_key("authorization")));
}
