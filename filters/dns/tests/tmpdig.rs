#[cfg(test)]
#[path = "it/support.rs"]
#[allow(dead_code)]
mod support;
use support::*;
#[tokio::test(flavor="multi_thread")]
async fn dig() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("u.conf");
    let port = 20000 + (std::process::id() % 20000) as u16;
    std::fs::write(&conf, format!("server:\n interface: 127.0.0.1@{port}\n port: {port}\n do-daemonize: no\n use-syslog: no\n chroot: \"\"\n username: \"\"\n directory: \"{d}\"\n pidfile: \"\"\n access-control: 127.0.0.0/8 allow\n local-zone: \"example.\" static\n local-data: \"www.example. 3600 IN A 192.0.2.7\"\n local-data: \"example. 60 IN SOA ns.example. h.example. 1 2 3 4 5\"\n local-data: 'big.example. IN TXT \"{t}\"'\n local-data: 'big.example. IN TXT \"{u}\"'\n local-data: 'big.example. IN TXT \"{v}\"'\n local-data: 'big.example. IN TXT \"{w}\"'\n local-data: 'big.example. IN TXT \"{x}\"'\n", d=dir.path().display(), t="a".repeat(255), u="b".repeat(255), v="c".repeat(255), w="d".repeat(255), x="e".repeat(255))).unwrap();
    let mut child = std::process::Command::new("unbound").arg("-c").arg(&conf).spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    let sidecar = Sidecar::with(&format!(r#"{{"dns_cache":{{"enabled":true}},"dns_upstream":{{"servers":["127.0.0.1:{port}"]}}}}"#)).await;
    let p = sidecar.addr.port().to_string();
    for args in [vec!["www.example"], vec!["WwW.example"], vec!["www.example","+tcp"], vec!["nope.example"], vec!["nope.example"], vec!["big.example","TXT"], vec!["big.example","TXT","+ignore","+noall","+comments"], vec!["www.example","ANY"], vec!["www.example","+edns=1","+noednsneg"], vec!["www.example","AXFR"], vec!["+opcode=notify","www.example"], vec!["www.example", "+dnssec", "+cd"], vec!["x", "CH", "TXT"]] {
        let out = tokio::process::Command::new("dig").args(["@127.0.0.1","-p",&p]).args(&args).output().await.unwrap();
        println!("#### {args:?}\n{}", String::from_utf8_lossy(&out.stdout).chars().take(900).collect::<String>());
    }
    child.kill().unwrap(); child.wait().unwrap();
}
