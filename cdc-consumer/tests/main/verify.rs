//! `cdc-consumer verify` finds what is wrong, and nothing else.

use std::path::PathBuf;

use cdc_consumer::cli::{Cli, Command};
use cdc_consumer::verify::verify;
use clap::Parser;
use serde_json::{Value as Json, json};

use crate::harness::{SOON, World, wait_until};

/// Rows that differ are waited for, in vain: as short as may be.
const IN_VAIN: &str = "--wait=1s";

/// Runs it for the view `goods` and the table `public."Goods of the ""shop"""` of the same database.
async fn run(world: &World) -> (Json, Result<(), String>) {
    run_with(world, "{ Price = 'price' }", IN_VAIN).await
}

/// The same with these `columns` declared, and so long for rows that differ.
async fn run_with(world: &World, columns: &str, wait: &str) -> (Json, Result<(), String>) {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.toml", world.name));
    let views = format!(
        "[[view]]\ntopic = 'goods'\ntable = 'goods'\nkey = {{ Id = 'good_id' }}\ncolumns = {columns}\n"
    );
    std::fs::write(&file, views).expect("a views file");
    let arguments = [
        "cdc-consumer".to_owned(),
        "verify".to_owned(),
        "--json".to_owned(),
        wait.to_owned(),
        "--view=goods".to_owned(),
        "--source-table=public.\"Goods of the \"\"shop\"\"\"".to_owned(),
        format!("--source-database-url={}", world.admin_url()),
        format!("--consumer-database-url={}", world.consumer_url(&world.database_address())),
        format!("--views-file={}", file.display()),
    ];
    let cli = Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}"));
    let Command::Verify(settings) = cli.command else { panic!("a verify") };
    let mut out = Vec::new();
    let outcome = verify(&settings, &mut out).await.map_err(|error| format!("{error:#}"));
    std::fs::remove_file(&file).expect("our file");
    (serde_json::from_slice(&out).unwrap_or_default(), outcome)
}

/// Both tables with the same hundred rows, some of odd values.
async fn goods(world: &World) {
    world
        .view(
            "create table goods (good_id bigint, part text, price numeric(12,4), at timestamptz,
                 note text, primary key (good_id, part))",
            "goods",
        )
        .await;
    world
        .sql(
            "create table public.\"Goods of the \"\"shop\"\"\" (\"Id\" integer, part varchar(9),
                 \"Price\" numeric(12,2), at timestamptz, note text, primary key (\"Id\", part));
             insert into public.\"Goods of the \"\"shop\"\"\"
             select n / 3, 'p' || n % 3, n * 1.5, '2024-05-01 10:00+02'::timestamptz + n * interval '1 h',
                 case n % 4 when 0 then null when 1 then '' else E'it''s, \"q\" \\\\ ' || n end
             from generate_series(1, 100) n;
             insert into goods (good_id, part, price, at, note, source_epoch, source_lsn)
             select \"Id\", part, \"Price\", at, note, 0, 1 from public.\"Goods of the \"\"shop\"\"\"",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_tables_are_found_equal_whatever_their_types_are_called() {
    let world = World::new().await;
    goods(&world).await;
    let (report, outcome) = run(&world).await;
    assert_eq!(outcome, Ok(()));
    assert_eq!(report["rows"], 100);
    assert_eq!(report["differing"], json!([]));
    assert_eq!(report["derived"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_is_compared_under_the_name_it_has_at_the_source_now() {
    let world = World::new().await;
    goods(&world).await;
    let renamed = "{ Cost = 'price', Price = 'price' }";
    assert_eq!(run_with(&world, renamed, IN_VAIN).await.1, Ok(()));
    world.sql("alter table public.\"Goods of the \"\"shop\"\"\" add price numeric").await;
    assert_eq!(run_with(&world, renamed, IN_VAIN).await.1, Ok(()));
    world.sql("alter table public.\"Goods of the \"\"shop\"\"\" add \"Cost\" numeric").await;
    let error = run_with(&world, renamed, IN_VAIN).await.1.expect_err("two sources of one column");
    assert!(error.contains("fields 'Cost' and 'Price' both feed column goods.price"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_that_differs_is_named() {
    let world = World::new().await;
    goods(&world).await;
    world
        .sql(
            "delete from goods where good_id = 7 and part = 'p1';
             update goods set note = null where good_id = 8 and part = 'p1';
             insert into goods (good_id, part, price, source_epoch, source_lsn)
             values (9, 'P1', 1, 0, 1);
             update department_stats_slot set user_count = 5;
             insert into department_stats_slot values ('개발팀', 0, 3, 0, now())",
        )
        .await;
    let (report, outcome) = run(&world).await;
    let table = "public.\"Goods of the \"\"shop\"\"\"";
    assert_eq!(outcome, Err(format!("goods does not equal {table}")));
    assert_eq!(
        report["differing"],
        json!([
            {"key": ["7", "p1"], "difference": "missing"},
            {"key": ["8", "p1"], "difference": "unequal"},
            {"key": ["9", "P1"], "difference": "unexpected"},
        ])
    );
    assert_eq!(report["derived"], json!(["department_stats"]));
}

/// Waits until rows that differed are being looked at again.
async fn reads_again(world: &World) {
    wait_until("verify to read", SOON, || async {
        let seen = "select count(*) from pg_stat_activity where datname = current_database()
                    and application_name = 'cdc-consumer verify' and query like '%unnest%'";
        if world.text(seen).await == "0" { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_only_lags_is_no_difference() {
    let world = World::new().await;
    goods(&world).await;
    world.sql("delete from goods where good_id = 7; update goods set note = 'old'").await;
    let late = async {
        // The view catches up while the rows are being looked at again.
        reads_again(&world).await;
        world
            .sql(
                "delete from goods; insert into goods
                     (good_id, part, price, at, note, source_epoch, source_lsn)
                 select \"Id\", part, \"Price\", at, note, 0, 1
                 from public.\"Goods of the \"\"shop\"\"\"",
            )
            .await;
    };
    // Ends as soon as they are equal.
    let patient = run_with(&world, "{ Price = 'price' }", "--wait=2m");
    let ((report, outcome), ()) = tokio::join!(patient, late);
    assert_eq!(outcome, Ok(()), "{report}");
}

/// What does not fit the view is a dead letter, perhaps, or was cut by whoever wrote the view by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_value_the_view_cannot_hold_differs_and_the_others_are_compared() {
    let world = World::new().await;
    let create = "create table goods (good_id bigint primary key, code char(5), tags varchar(3)[],
        stock int, price numeric(5,2))";
    world.view(create, "goods").await;
    world
        .sql(
            "create table public.\"Goods of the \"\"shop\"\"\" (\"Id\" bigint primary key, code text,
                 tags text[], stock bigint, price numeric);
             insert into public.\"Goods of the \"\"shop\"\"\" values
                 (1, 'abc', '{abc}', 7, 1.5), (2, 'abcdefgh', '{abc}', 7, 1.5),
                 (3, 'abc', '{abcdef}', 7, 1.5), (4, 'abc', '{abc}', 3000000000, 1.5),
                 (5, 'abc', '{abc}', 7, 12345.5);
             insert into goods (good_id, code, tags, stock, price) values
                 (1, 'abc', '{abc}', 7, 1.5), (2, 'abcde', '{abc}', 7, 1.5),
                 (3, 'abc', '{abc}', 7, 1.5), (5, 'abc', '{abc}', 7, 1)",
        )
        .await;
    let (report, outcome) = run_with(&world, "{}", IN_VAIN).await;
    let difference = |key: &str, difference: &str| json!({"key": [key], "difference": difference});
    let expected = json!([
        difference("2", "unequal"),
        difference("3", "unequal"),
        difference("4", "missing"),
        difference("5", "unequal"),
    ]);
    assert_eq!(report["differing"], expected, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_only_the_view_database_knows_is_compared_as_what_it_stands_for() {
    let world = World::new().await;
    let create = "create domain cents as numeric(10,2); create domain cost as cents; \
        create domain code as text; \
        create table goods (good_id bigint primary key, price cost, code code, at timestamptz(3))";
    world.view(create, "goods").await;
    world
        .sql(
            "create table public.\"Goods of the \"\"shop\"\"\" (\"Id\" bigint primary key, price numeric,
                 code varchar(9), at timestamptz);
             insert into public.\"Goods of the \"\"shop\"\"\"
             values (1, 1.5, 'a', '2024-05-01 10:00:00.123456+02');
             insert into goods (good_id, price, code, at)
             values (1, 1.5, 'a', '2024-05-01 10:00:00.123+02')",
        )
        .await;
    let (report, outcome) = run_with(&world, "{}", IN_VAIN).await;
    assert_eq!(outcome, Ok(()), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_of_views_that_others_took_the_place_of_meanwhile() {
    let world = World::new().await;
    goods(&world).await;
    world.sql("delete from goods where good_id = 7").await;
    let replaced = async {
        reads_again(&world).await;
        world.sql("update public.cdc_generation set current = 2").await;
    };
    let ((report, outcome), ()) = tokio::join!(run(&world), replaced);
    let refused = outcome.expect_err("another generation is current");
    assert!(refused.contains("say it again"), "{refused}");
    assert_eq!(report, Json::Null);
}
