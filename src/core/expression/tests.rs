#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Expression {
    Expression::parse(text).unwrap()
}

fn photo() -> AssetFacts {
    AssetFacts {
        tags: Some(["holiday".to_owned(), "two words".to_owned()].into()),
        media_type: Some("image/jpeg".into()),
        name: Some("IMG_1.JPG".into()),
        folders: Some(["Photos".to_owned()].into()),
        added_by: Some(vec!["phone".into(), "ab12".into()]),
        size_bytes: Some(3 << 20),
        age_ms: Some(10 * DAY_MS),
        copies: Some(1),
    }
}

#[test]
fn every_test_of_an_asset_can_be_true_and_false() {
    let pairs = [
        ("tag=holiday", "tag=work"),
        ("tag=\"two words\"", "tag=two"),
        ("type=image/*", "type=video/*"),
        ("name=*.jpg", "name=*.raw"),
        ("name=IMG*1*", "name=IMG*2*"),
        ("folder=photos", "folder=photo"),
        ("added-by=phone", "added-by=laptop"),
        ("added-by=ab12", "added-by=cd*"),
        ("size>1M", "size>1G"),
        ("size<=3M", "size<3M"),
        ("size>=3145728", "size>3145728"),
        ("age<90d", "age<1w"),
        ("age>=240h", "age>1y"),
        ("copies<2", "copies>1"),
        ("tag=work or type=image/*", "tag=work and type=image/*"),
        ("not tag=work", "not tag=holiday"),
        ("not (tag=work or tag=x)", "not (tag=work or tag=holiday)"),
        ("tag=a and tag=b or size>1", "tag=a and (tag=b or size>1)"),
    ];
    for (fits, does_not) in pairs {
        assert!(parse(fits).matches(&photo()), "{fits}");
        assert_eq!(parse(does_not).judge(&photo()), Some(false), "{does_not}");
    }
}

#[test]
fn what_is_not_known_makes_nothing_certain_but_does_not_hide_what_is() {
    let unknown = AssetFacts { size_bytes: Some(5), ..AssetFacts::default() };
    for text in ["type=image/*", "not type=image/*", "tag=a and size>1", "tag=a or size>9"] {
        let expression = parse(text);
        assert_eq!(expression.judge(&unknown), None, "{text}");
        assert!(!expression.matches(&unknown), "{text}");
    }
    assert_eq!(parse("tag=a or size>1").judge(&unknown), Some(true));
    assert_eq!(parse("tag=a and size>9").judge(&unknown), Some(false));
}

#[test]
fn a_text_that_is_no_expression_is_refused_with_the_place_and_what_was_expected() {
    let refused = [
        ("", 0, "a test"),
        ("tag", 3, "`=`"),
        ("tag=", 4, "a text"),
        ("tag=\"\"", 4, "not empty"),
        ("tag=\"a", 6, "closing"),
        ("type=image/* tag=x", 13, "`and`, `or`"),
        ("type=image/* and", 16, "a test"),
        ("(tag=a or tag=b", 15, "`)`"),
        ("tag=a)", 5, "the end"),
        ("size=3", 4, "`<`"),
        ("size>big", 5, "a size"),
        ("size>1.2.3G", 5, "a size"),
        ("age<90", 4, "a time"),
        ("copies<-1", 7, "a number of copies"),
        ("copies<99999999999999999999", 7, "a number of copies"),
        ("größe>1", 0, "a test"),
        ("tag=ä and size", 14, "`<`"),
    ];
    for (text, at, expected) in refused {
        let error = Expression::parse(text).unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.expected.contains(expected), "{text}: {error}");
    }
    let error = Expression::parse("tag=a or foo=1").unwrap_err();
    assert!(error.to_string().starts_with("at character 10: expected a test"), "{error}");
    assert!(error.to_string().ends_with("found `foo=1`"), "{error}");
}

#[test]
fn a_test_whose_answer_changes_by_following_it_is_refused() {
    for text in ["not present", "present", "tag=a and here", "missing or held"] {
        let error = Expression::parse(text).unwrap_err();
        assert!(error.expected.contains("following it would change its answer"), "{error}");
    }
}

#[test]
fn an_expression_that_is_too_long_or_too_deep_is_refused() {
    let long = format!("tag={}", "x".repeat(EXPRESSION_BYTES_MAX));
    assert!(Expression::parse(&long).unwrap_err().expected.contains("bytes"));
    let nested = |levels: usize| format!("{}tag=x{}", "(".repeat(levels), ")".repeat(levels));
    assert!(Expression::parse(&nested(EXPRESSION_DEPTH_MAX - 1)).is_ok());
    for text in [nested(EXPRESSION_DEPTH_MAX), "not ".repeat(500) + "tag=x"] {
        assert!(Expression::parse(&text).unwrap_err().expected.contains("levels"));
    }
}

#[test]
fn numbers_are_read_with_their_units() {
    let sizes = [("5", 5), ("5k", 5 << 10), ("1.5G", 3 << 29), ("2TiB", 2 << 40), ("0", 0)];
    for (text, bytes) in sizes {
        let expected = Expression::Number(NumberField::Size, Compare::More, bytes);
        assert_eq!(parse(&format!("size > {text}")), expected);
    }
    for (text, ms) in [("30s", 30_000), ("2m", 120_000), ("1y", 365 * DAY_MS), ("0s", 0)] {
        let expected = Expression::Number(NumberField::Age, Compare::AtMost, ms);
        assert_eq!(parse(&format!("age<={text}")), expected);
    }
    for text in ["size>1.5", "size>.5G", "size>1.G", "size>1.2345G", "age<1D", "size>99999999T"] {
        assert!(Expression::parse(text).is_err(), "{text}");
    }
}

fn expressions() -> impl Strategy<Value = Expression> {
    let text_field = prop::sample::select(TextField::ALL.to_vec());
    let number_field = prop::sample::select(NumberField::ALL.to_vec());
    let compare = prop::sample::select(Compare::ALL.to_vec());
    let test = prop_oneof![
        (text_field, "[a-z*/ ()\"\\\\=<>äß]{1,6}")
            .prop_filter("printable", |(_, text)| !text.is_empty())
            .prop_map(|(field, text)| Expression::Text(field, text)),
        (number_field, compare, prop_oneof![0..5000_u64, any::<u64>()])
            .prop_map(|(field, compare, n)| Expression::Number(field, compare, n)),
    ];
    test.prop_recursive(3, 12, 3, |inner| {
        let some = || prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            some().prop_map(Expression::And),
            some().prop_map(Expression::Or),
            inner.clone().prop_map(|part| Expression::Not(Box::new(part))),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(
        text in "(tag|size|age|not|and|or|[()=<>\"\\\\. ]|\\PC|[0-9]){0,40}"
    ) {
        let _ = Expression::parse(&text);
    }

    #[test]
    fn a_printed_expression_is_read_as_the_same(expression in expressions()) {
        let text = expression.to_string();
        prop_assert_eq!(Expression::parse(&text).unwrap(), expression, "{}", text);
    }
}
