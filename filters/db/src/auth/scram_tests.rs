use proptest::prelude::*;

use super::*;

/// What comes of a whole exchange.
fn exchange(
    verifier: &Verifier,
    credentials: Credentials,
    binding: (Option<&[u8]>, Option<&[u8]>),
) -> Result<ClientKey, ScramError> {
    let mut server = Server::new(verifier.clone(), binding.0.map(<[u8]>::to_vec))?;
    let (mut client, mechanism) = Client::new(credentials, server.mechanisms(), binding.1)?;
    let answer = client.answer(&server.first(mechanism, &client.first())?)?;
    let (last, key) = server.last(&answer)?;
    client.verify(&last).map(|()| key)
}

fn password(password: &str) -> Credentials {
    Credentials::Password(Password::new(password.as_bytes()))
}

/// RFC 7677 section 3.
#[test]
fn the_example_of_the_standard() {
    let salt = BASE64.decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let verifier = Verifier::of_password(&Password::new(b"pencil"), &salt);
    let mut server = Server::new(verifier, None).unwrap();
    server.nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
    let bare = "n=user,r=rOprNGfwEbeRWgbNEkqO";
    let first = server.first(SCRAM_SHA_256, format!("n,,{bare}").as_bytes()).unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    assert_eq!(text(&first).unwrap(), format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));

    let (mut client, _) = Client::new(password("pencil"), &[SCRAM_SHA_256], None).unwrap();
    (client.bare, client.nonce) = (bare.to_owned(), "rOprNGfwEbeRWgbNEkqO".to_owned());
    let last = client.answer(&first).unwrap();
    assert_eq!(
        text(&last).unwrap(),
        format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    );
    let (end, _) = server.last(&last).unwrap();
    assert_eq!(text(&end).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    client.verify(&end).unwrap();
}

/// `CREATE ROLE … PASSWORD 'geheim'` in PostgreSQL 15.
#[test]
fn verifiers_are_read_as_postgresql_writes_them() {
    let verifier = Verifier::of_password(&Password::new(b"geheim"), b"0123456789abcdef");
    let Verifier { iterations, salt, stored, server } = &verifier;
    let [salt, stored, server] = [&salt[..], stored, server].map(|bytes| BASE64.encode(bytes));
    let written = format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}");
    assert_eq!(written.parse::<Verifier>().unwrap(), verifier);
    for wrong in [
        "",
        "geheim",
        "md5a6a2c32e7a5e1b4a3a4ef0f8b8d4f6c1",
        &written.replace("4096", "0"),
        &written.replace("4096", "-1"),
        &written.replace(&salt, ""),
        &written.replace(&stored, &salt),
        &written[..written.len() - 1],
    ] {
        assert_eq!(wrong.parse::<Verifier>(), Err(ScramError::Malformed), "{wrong}");
    }
    assert!(!format!("{verifier:?}").contains(&salt));
}

#[test]
fn the_key_that_a_client_gives_away_logs_in_where_the_verifier_is_the_same() {
    let verifier = Verifier::of_password(&Password::new(b"geheim"), b"salt");
    let key = exchange(&verifier, password("geheim"), (None, None)).unwrap();
    assert_eq!(exchange(&verifier, Credentials::Key(key.clone()), (None, None)), Ok(key.clone()));
    let bound = (Some(&b"hash"[..]), Some(&b"hash"[..]));
    assert_eq!(exchange(&verifier, Credentials::Key(key.clone()), bound), Ok(key.clone()));
    let other = Verifier::of_password(&Password::new(b"geheim"), b"other salt");
    assert_eq!(exchange(&other, Credentials::Key(key), (None, None)), Err(ScramError::OtherVerifier));
}

#[test]
fn wrong_passwords_and_users_that_are_none_are_refused_alike() {
    let verifier = Verifier::of_password(&Password::new(b"geheim"), b"salt");
    assert_eq!(exchange(&verifier, password("falsch"), (None, None)), Err(ScramError::Refused));
    let decoy = || Verifier::decoy(b"nobody", b"secret");
    assert_eq!(decoy(), decoy());
    assert!(decoy() != Verifier::decoy(b"other", b"secret"));
    assert_eq!(exchange(&decoy(), password("geheim"), (None, None)), Err(ScramError::Refused));
}

#[test]
fn channel_binding_is_used_where_both_have_it_and_cannot_be_taken_away() {
    let verifier = Verifier::of_password(&Password::new(b"geheim"), b"salt");
    let run = |server: Option<&[u8]>, client: Option<&[u8]>| {
        exchange(&verifier, password("geheim"), (server, client)).map(drop)
    };
    assert_eq!(run(Some(b"a"), Some(b"a")), Ok(()));
    assert_eq!(
        run(Some(b"a"), Some(b"b")),
        Err(ScramError::Binding),
        "another certificate: somebody is between"
    );
    assert_eq!(run(Some(b"a"), None), Ok(()), "a client without it");
    assert_eq!(run(None, Some(b"a")), Ok(()), "a server without it");
    let mut server = Server::new(verifier, Some(b"a".to_vec())).unwrap();
    assert_eq!(
        server.first(SCRAM_SHA_256, b"y,,n=,r=abc"),
        Err(ScramError::Binding),
        "the offer was taken away"
    );
}

#[test]
fn what_is_not_of_the_grammar_is_refused() {
    let first = |message: &str| {
        let mut server =
            Server::new(Verifier::of_password(&Password::new(b"geheim"), b"salt"), None).unwrap();
        server.first(SCRAM_SHA_256, message.as_bytes()).map(drop)
    };
    assert_eq!(first("n,,n=user,r=abc"), Ok(()));
    assert_eq!(first("n,,m=x,n=user,r=abc"), Err(ScramError::Extension));
    for wrong in [
        "",
        "n",
        "n,",
        "n,,",
        "x,,n=,r=a",
        "n,a=other,n=,r=a",
        "n,,r=a",
        "n,,n=",
        "n,,n=,r=",
        "n,,n=,r=a\u{7f}",
    ] {
        assert_eq!(first(wrong), Err(ScramError::Malformed), "{wrong}");
    }
    assert_eq!(first("p=tls-unique,,n=,r=a"), Err(ScramError::Binding));
    let answer = |message: &str| {
        let (mut client, _) = Client::new(password("geheim"), &[SCRAM_SHA_256], None).unwrap();
        client.answer(message.replace("NONCE", &client.nonce).as_bytes()).map(drop)
    };
    assert_eq!(answer("r=NONCEx,s=c2FsdA==,i=4096"), Ok(()));
    assert_eq!(answer("r=NONCEx,s=c2FsdA==,i=1000000000"), Err(ScramError::Iterations));
    for wrong in
        ["r=NONCE,s=c2FsdA==,i=1", "r=x,s=c2FsdA==,i=1", "r=NONCEx,s=!,i=1", "r=NONCEx,s=c2FsdA==,i=0"]
    {
        assert_eq!(answer(wrong), Err(ScramError::Malformed), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_agree_on_any_password(secret in "\\PC{0,20}", other in "\\PC{0,20}", salt in prop::collection::vec(any::<u8>(), 1..32)) {
        let verifier = Verifier::of_password(&Password::new(secret.as_bytes()), &salt);
        prop_assert!(exchange(&verifier, password(&secret), (None, None)).is_ok());
        if salted(secret.as_bytes(), &salt, ITERATIONS) != salted(other.as_bytes(), &salt, ITERATIONS) {
            prop_assert_eq!(exchange(&verifier, password(&other), (None, None)), Err(ScramError::Refused));
        }
    }

    #[test]
    fn whatever_is_said_there_is_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_scram(&bytes);
    }
}
