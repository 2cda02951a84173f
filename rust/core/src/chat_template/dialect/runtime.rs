//! What a rewritten template calls: Python's meaning of what minijinja does otherwise.

use super::super::MAX_OUTPUT;
use super::super::python::{MAX_NESTING, to_str, too_deep};
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::cmp::Ordering;
use std::sync::Arc;

// No template can use these names by accident.
pub(super) const MODULO: &str = "__tokenwire_modulo";
pub(super) const CONCAT: &str = "__tokenwire_concat";
pub(super) const ATTRIBUTE: &str = "__tokenwire_attribute";
pub(super) const ITEM: &str = "__tokenwire_item";
pub(super) const CONTAINS: &str = "__tokenwire_in";
pub(super) const SLICEABLE: &str = "__tokenwire_sliceable";
pub(super) const ITERABLE: &str = "__tokenwire_iterable";
pub(super) const SHALLOW: &str = "__tokenwire_shallow";
pub(super) const STORED: &str = "__tokenwire_stored";

/// minijinja's own.
const NAMESPACE: &str = "__tokenwire_namespace";

/// Operators of order and the functions that stand for them.
pub(super) const ORDER: [(&str, &str); 4] =
    [("<", "__tokenwire_lt"), ("<=", "__tokenwire_le"), (">", "__tokenwire_gt"), (">=", "__tokenwire_ge")];

/// Names of the tests that stand for the same operators.
const ORDER_TESTS: [[&str; 3]; 4] =
    [["<", "lt", "lessthan"], ["<=", "le", "le"], [">", "gt", "greaterthan"], [">=", "ge", "ge"]];

const DICT_METHODS: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST_METHODS: [&str; 3] = ["copy", "count", "index"];
const STR_METHODS: [&str; 26] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "find",
    "format",
    "index",
    "isdigit",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "replace",
    "rfind",
    "rjust",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "title",
    "upper",
];

/// Methods that change their value; jinja2's sandbox hides them.
const HIDDEN_DICT_METHODS: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const HIDDEN_LIST_METHODS: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// Whether some value of Python has a method of this name.
pub(super) fn is_method(name: &str) -> bool {
    [&DICT_METHODS[..], &LIST_METHODS, &STR_METHODS, &HIDDEN_DICT_METHODS, &HIDDEN_LIST_METHODS]
        .iter()
        .any(|names| names.contains(&name))
}

/// Adds the calls to an environment.
pub(in super::super) fn register(env: &mut Environment<'_>) {
    env.add_function(MODULO, modulo);
    env.add_function(CONCAT, concat);
    env.add_function(ATTRIBUTE, |value: &Value, name: &str| attribute(value, name));
    env.add_function(ITEM, |value: &Value, name: &str| item(value, name));
    env.add_function(CONTAINS, contains);
    env.add_function(SLICEABLE, sliceable);
    env.add_function(NAMESPACE, minijinja::functions::namespace);
    env.add_function("namespace", namespace);
    env.add_filter(ITERABLE, iterable);
    env.add_filter(SHALLOW, |state: &mut State<'_, '_>, value: Value| shallow(state, value, true));
    env.add_filter(STORED, |state: &mut State<'_, '_>, value: Value| shallow(state, value, false));
    env.add_test("odd", |value: &Value| remainder(value, 2).map(|remainder| remainder == 1));
    env.add_test("even", |value: &Value| remainder(value, 2).map(|remainder| remainder == 0));
    env.add_test("divisibleby", |value: &Value, by: i64| remainder(value, by).map(|remainder| remainder == 0));
    // jinja2's undefined has a method for calls, which fails.
    env.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined));
    let holds: [fn(Ordering) -> bool; 4] = [Ordering::is_lt, Ordering::is_le, Ordering::is_gt, Ordering::is_ge];
    for (((_, function), tests), holds) in ORDER.into_iter().zip(ORDER_TESTS).zip(holds) {
        let judge = move |a: &Value, b: &Value| order(a, b).map(|order| order.is_some_and(holds));
        env.add_function(function, judge);
        for test in tests {
            env.add_test(test, judge);
        }
    }
    env.add_filter("attr", |value: &Value, name: &str| method(value, name).unwrap_or_default());
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// transformers' `namespace(mapping={}, **attributes)`, which takes no names with an underscore in front.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn namespace(state: &mut State<'_, '_>, mapping: Option<Value>, attributes: Kwargs) -> Result<Value, Error> {
    let mut all = Vec::new();
    for key in mapping.iter().flat_map(Value::try_iter).flatten() {
        let value = mapping.as_ref().map_or(Ok(Value::UNDEFINED), |mapping| mapping.get_item(&key))?;
        all.push((key, value));
    }
    for name in attributes.args() {
        all.push((Value::from(name), attributes.get(name)?));
    }
    attributes.assert_all_used()?;
    if all.iter().any(|(name, _)| name.as_str().is_none_or(|name| name.starts_with('_'))) {
        return Err(invalid("a namespace takes no names with an underscore in front"));
    }
    let make = state.lookup(NAMESPACE).ok_or_else(|| invalid("there is no namespace"))?;
    make.call(state, &[Value::from_pairs(all)])
}

/// The value itself, which must not be none.
fn iterable(value: Value) -> Result<Value, Error> {
    if value.is_none() { Err(invalid("none is not iterable")) } else { Ok(value) }
}

/// The value itself, which is put into a variable, or into a namespace, where no other may be (`with_namespaces`
/// false): it would be a ring.
///
/// Deep values are refused here because whatever walks through one needs stack for each of its levels, also what frees
/// it. Each item looked at is a step: a value can be small and look huge, as it may hold the same list many times.
fn shallow(state: &mut State<'_, '_>, value: Value, with_namespaces: bool) -> Result<Value, Error> {
    look_into(state, &value, 0, with_namespaces)?;
    Ok(value)
}

/// Steps for an item of what is not a plain list, such as a sum of lists, which is looked for through all its parts.
const LAZY_STEPS: u64 = 8;

fn look_into(state: &mut State<'_, '_>, value: &Value, depth: usize, with_namespaces: bool) -> Result<(), Error> {
    if depth > MAX_NESTING {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            let steps = if value.kind() == ValueKind::Seq { 1 } else { LAZY_STEPS };
            for item in value.try_iter()? {
                state.consume_fuel(steps)?;
                look_into(state, &item, depth + 1, with_namespaces)?;
            }
        }
        ValueKind::Map => {
            let is_namespace = value.as_object().is_some_and(|object| object.type_name().contains("Namespace"));
            if is_namespace && !with_namespaces {
                return Err(invalid("a namespace cannot be put into a namespace"));
            }
            for key in value.try_iter()? {
                state.consume_fuel(1)?;
                look_into(state, &value.get_item(&key)?, depth + 1, with_namespaces)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What is to be sliced: text or a list.
fn sliceable(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Iterable => Ok(value),
        kind => Err(invalid(format!("a value of type {kind} cannot be sliced"))),
    }
}

/// `a in b`: text is only in text.
fn contains(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    match b.kind() {
        ValueKind::String if a.as_str().is_none() => Err(invalid("only a string can be in a string")),
        ValueKind::None | ValueKind::Bool | ValueKind::Number => Err(invalid(format!("nothing is in a {}", b.kind()))),
        ValueKind::Map if matches!(a.kind(), ValueKind::Map | ValueKind::Seq) && !a.is_tuple() => {
            Err(invalid(format!("a {} cannot be a key", a.kind())))
        }
        _ => state.perform_test("in", &[a.clone(), b.clone()]),
    }
}

/// `value % by` for whole numbers; another number is no multiple of anything but itself.
fn remainder(value: &Value, by: i64) -> Result<i128, Error> {
    match number(value) {
        Some(Number::Whole(number)) => {
            number.checked_rem_euclid(i128::from(by)).ok_or_else(|| invalid("modulo by zero"))
        }
        #[expect(clippy::cast_possible_truncation, reason = "the value has no fraction here")]
        Some(Number::Float(number)) if number.fract() == 0.0 => Ok((number as i128).rem_euclid(i128::from(by.max(1)))),
        Some(Number::Float(_)) => Ok(-1),
        None => Err(invalid(format!("a {} is no number", value.kind()))),
    }
}

/// `a ~ b`: each as `str` writes it.
#[expect(clippy::needless_pass_by_value, reason = "minijinja passes arguments of this kind by value")]
fn concat(state: &mut State<'_, '_>, values: Rest<Value>) -> Result<String, Error> {
    let mut out = String::new();
    for value in values.iter() {
        out.push_str(&to_str(value)?);
        if out.len() > MAX_OUTPUT {
            return Err(invalid("the text is too large"));
        }
    }
    // As minijinja's own operators: the work counts by its bytes.
    state.consume_fuel(u64::try_from(out.len() / 64).unwrap_or(u64::MAX))?;
    Ok(out)
}

/// `a % b`: `printf` formatting for a string, the remainder that has the sign of `b` for numbers.
fn modulo(state: &mut State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(template) = a.as_str() {
        let mut arguments = vec![a.clone()];
        if b.is_tuple() {
            arguments.extend(b.try_iter()?);
        } else {
            arguments.push(b.clone());
        }
        // Python takes a list for a mapping, whose values need not all be used.
        let is_mapping = matches!(b.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Undefined) && !b.is_tuple();
        if !is_mapping && arguments.len() - 1 != conversions(template) {
            return Err(invalid("% needs as many values as its string converts"));
        }
        return state.apply_filter("format", &arguments);
    }
    let (Some(a), Some(b)) = (number(a), number(b)) else {
        return Err(invalid("% needs numbers, or a string on its left"));
    };
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => {
            let remainder = a.checked_rem(b).ok_or_else(|| invalid("modulo by zero"))?;
            Ok(Value::from(if remainder != 0 && (remainder < 0) != (b < 0) { remainder + b } else { remainder }))
        }
        (a, b) => {
            let (a, b) = (a.float(), b.float());
            if b == 0.0 {
                return Err(invalid("modulo by zero"));
            }
            let remainder = a % b;
            let is_other_side = remainder != 0.0 && (remainder < 0.0) != (b < 0.0);
            Ok(Value::from(if is_other_side { remainder + b } else { remainder.copysign(b) }))
        }
    }
}

/// How many values a `printf` template takes.
fn conversions(template: &str) -> usize {
    let mut count = 0;
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        let body = &rest[at + 1..];
        let end = body.find(|c: char| c == '%' || (c.is_alphabetic() && !"hlL".contains(c))).unwrap_or(body.len());
        count += body[..end].matches('*').count() + usize::from(!body[end..].starts_with('%'));
        rest = body.get(end + 1..).unwrap_or_default();
    }
    count
}

enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    #[expect(clippy::cast_precision_loss, reason = "as Python does in mixed arithmetic")]
    fn float(&self) -> f64 {
        match self {
            Self::Whole(number) => *number as f64,
            Self::Float(number) => *number,
        }
    }
}

/// A number of Python's, which a bool is as well.
fn number(value: &Value) -> Option<Number> {
    match value.kind() {
        ValueKind::Bool => Some(Number::Whole(i128::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Whole),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
        _ => None,
    }
}

/// Python's order of two values; none for NaN.
///
/// # Errors
/// For values that Python does not order.
fn order(a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return Ok(match (a, b) {
            (Number::Whole(a), Number::Whole(b)) => Some(a.cmp(&b)),
            (a, b) => a.float().partial_cmp(&b.float()),
        });
    }
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Some(a.cmp(b)));
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list(a) && is_list(b) && a.is_tuple() == b.is_tuple() {
        let mut others = b.try_iter()?;
        for item in a.try_iter()? {
            let Some(other) = others.next() else { return Ok(Some(Ordering::Greater)) };
            if item != other {
                return order(&item, &other);
            }
        }
        return Ok(Some(if others.next().is_some() { Ordering::Less } else { Ordering::Equal }));
    }
    Err(invalid(format!("{} and {} have no order", a.kind(), b.kind())))
}

/// `value.name`, not called: Python finds the method before jinja2 looks for a key.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    match method(value, name) {
        Some(method) => Ok(method),
        None => value.get_attr(name),
    }
}

/// `value['name']`: jinja2 looks for the method where there is no such key.
fn item(value: &Value, name: &str) -> Result<Value, Error> {
    let found = value.get_item(&Value::from(name))?;
    Ok(if found.is_undefined() { method(value, name).unwrap_or_default() } else { found })
}

/// A method that was read without being called: there to be tested for. Calls (`value.name(…)`) are not rewritten.
#[derive(Debug)]
struct Method;

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        Err(invalid("a method that was stored cannot be called"))
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<built-in method>")
    }
}

/// The method of this name, undefined where the sandbox hides it; none where Python has no such method.
fn method(value: &Value, name: &str) -> Option<Value> {
    let (names, hidden) = match value.kind() {
        ValueKind::String => (&STR_METHODS[..], &[][..]),
        ValueKind::Seq => (&LIST_METHODS[..], &HIDDEN_LIST_METHODS[..]),
        // Namespaces and loops are maps to minijinja, and have no methods.
        ValueKind::Map if is_dict(value) => (&DICT_METHODS[..], &HIDDEN_DICT_METHODS[..]),
        _ => return None,
    };
    if hidden.contains(&name) {
        return Some(Value::UNDEFINED);
    }
    names.contains(&name).then(|| Value::from_object(Method))
}

fn is_dict(value: &Value) -> bool {
    value
        .as_object()
        .is_none_or(|object| !["Namespace", "Loop", "Module"].iter().any(|kind| object.type_name().contains(kind)))
}
