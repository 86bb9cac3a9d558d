//! Two of each service behind the nginx configuration that is shipped.

use std::collections::HashSet;
use std::net::SocketAddr;

use serde_json::json;
use stack::Nginx;

use crate::http::{self, Answer, Events};
use crate::world::{Replicas, Service, World, new_id};

const CONFIG: &str = include_str!("../../../nginx.conf");

/// nginx as it is shipped, but for the addresses.
fn proxy(world: &World) -> Nginx {
    let servers = |services: &[Service]| {
        let server = |service: &Service| format!("server {} max_fails=1", service.addr);
        services.iter().map(server).collect::<Vec<_>>().join("; ")
    };
    let port = world.stack.claim_port();
    let mut config = CONFIG.to_owned();
    for (shipped, here) in [
        ("listen 80", format!("listen 127.0.0.1:{port}")),
        ("server gateway:3000 max_fails=1", servers(&world.gateways)),
        ("server reader:3001 max_fails=1", servers(&world.readers)),
    ] {
        assert!(config.contains(shipped), "{shipped}");
        config = config.replace(shipped, &here);
    }
    world.stack.nginx(&config, port).unwrap()
}

async fn write(proxy: SocketAddr, key: &str, name: &str) -> Answer {
    let headers = [("idempotency-key", key), ("prefer", "wait=60")];
    let body = json!({"name": name, "email": key}).to_string();
    let answer = http::send(proxy, "POST", "/users", &headers, body.as_bytes()).await;
    answer.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_each_behind_the_shipped_nginx_are_as_good_as_one() {
    let replicas = Replicas {
        gateways: 2,
        processors: 2,
        readers: 2,
    };
    let mut world = World::up_with(replicas, &[]).await;
    let nginx = proxy(&world);
    let proxy = nginx.addr();
    let mut live = Events::open(proxy, "/changes?tables=users", "")
        .await
        .unwrap();

    // A write, its status and its row, on one address.
    let key = new_id();
    let created = write(proxy, &key, "Ada").await;
    assert_eq!(created.status, 200, "{created:?}");
    let location = created.header("location");
    let get = async |path: &str, headers: &[(&str, &str)]| {
        http::send(proxy, "GET", path, headers, b"").await.unwrap()
    };
    assert_eq!(get(location, &[]).await.json()["status"], "completed");
    let outcome = created.json();
    let path = format!("/users/{}", outcome["entityId"].as_str().unwrap());
    // Whichever reader answers has seen it, several times over.
    let lsn = [("x-min-lsn", outcome["lsn"].as_str().unwrap())];
    for _ in 0..4 {
        assert_eq!(get(&path, &lsn).await.json()["name"], "Ada");
    }
    assert_eq!(live.next().await.unwrap().name, "insert");
    let document = get("/gateway/openapi.json", &[]).await.json();
    assert_eq!(document["info"]["title"], "gateway");
    assert_eq!(
        get("/openapi.json", &[]).await.json()["info"]["title"],
        "reader"
    );
    assert_eq!(get("/metrics", &[]).await.status, 404);
    assert_eq!(get("/gateway/metrics", &[]).await.status, 404);

    // The key is one key on both gateways.
    for gateway in &world.gateways {
        let again = write(gateway.addr, &key, "Ada").await;
        assert_eq!(again.json()["operationId"], key, "{again:?}");
        assert_eq!(write(gateway.addr, &key, "Bob").await.status, 422);
    }

    // One of each goes; nobody outside notices.
    world.gateways[1].process.kill();
    world.readers[1].process.kill();
    world.processors[0].process.kill();
    let mut ids = HashSet::new();
    for number in 0..20 {
        let written = write(proxy, &new_id(), &number.to_string()).await;
        assert_eq!(written.status, 200, "{written:?}");
        let outcome = written.json();
        let path = format!("/users/{}", outcome["entityId"].as_str().unwrap());
        let lsn = [("x-min-lsn", outcome["lsn"].as_str().unwrap())];
        assert_eq!(get(&path, &lsn).await.json()["name"], number.to_string());
        ids.insert(path);
    }
    assert_eq!(ids.len(), 20);
    world.gateways[1].crash();
    world.readers[1].crash();
    world.processors[0].crash();
    world.ready().await;
    world.settle(21).await;
    assert_eq!(world.value("SELECT count(*) FROM applied"), "21");
}
