//! From a state that disagrees to a small one that still does.

use anyhow::Result;
use serde_json::Value;

use super::campaign::{Disagreement, compare};
use super::question::Question;
use super::stage::Stage;
use super::state::{Case, State};

/// States that are tried at most; each takes a second.
const ATTEMPTS: usize = 60;

/// Leaves out what can be left out while one of the questions is still answered differently.
pub fn shrink(stage: &mut Stage, state: &State, disagreements: &[Disagreement]) -> Result<State> {
    let Some(first) = disagreements.first() else {
        return Ok(state.clone());
    };
    let question = first.question.clone();
    let Some(case) = question.case else {
        let alone = State {
            cases: Vec::new(),
            ..state.clone()
        };
        return Ok(if fails(stage, &alone, &question)? {
            alone
        } else {
            state.clone()
        });
    };
    let mut smallest = state.clone();
    let alone = State {
        cases: vec![state.cases[case].clone()],
        ..state.clone()
    };
    let question = Question {
        case: Some(0),
        ..question
    };
    if !fails(stage, &alone, &question)? {
        return Ok(smallest);
    }
    smallest = alone;
    let mut attempts = 0;
    loop {
        let mut progress = false;
        for candidate in smaller(&smallest) {
            attempts += 1;
            if attempts > ATTEMPTS {
                return Ok(smallest);
            }
            if fails(stage, &candidate, &question)? {
                smallest = candidate;
                progress = true;
                break;
            }
        }
        if !progress {
            return Ok(smallest);
        }
    }
}

fn fails(stage: &mut Stage, state: &State, question: &Question) -> Result<bool> {
    let (_, complaints) = stage.put(state)?;
    if !complaints.is_empty() {
        return Ok(false);
    }
    let compared = compare(stage, std::slice::from_ref(question))?;
    Ok(!compared.disagreements.is_empty())
}

/// States with one thing less, large things first.
fn smaller(state: &State) -> Vec<State> {
    let mut found = Vec::new();
    let mut with = |change: &dyn Fn(&mut Case)| {
        let mut less = state.clone();
        change(&mut less.cases[0]);
        if less != *state {
            found.push(less);
        }
    };
    let Some(case) = state.cases.first() else {
        return found;
    };
    for slice in 0..case.slices.len() {
        with(&|case| drop(case.slices.remove(slice)));
    }
    for (slice, object) in case.slices.iter().enumerate() {
        for endpoint in 0..object["endpoints"].as_array().map_or(0, Vec::len) {
            with(&|case| remove(&mut case.slices[slice]["endpoints"], endpoint));
        }
    }
    for port in 0..case.service["spec"]["ports"].as_array().map_or(0, Vec::len) {
        with(&|case| remove(&mut case.service["spec"]["ports"], port));
    }
    for field in [
        "loadBalancerSourceRanges",
        "externalIPs",
        "internalTrafficPolicy",
        "externalTrafficPolicy",
    ] {
        with(&|case| forget(&mut case.service["spec"], field));
    }
    with(&|case| forget(&mut case.service, "status"));
    with(&|case| forget(&mut case.service["metadata"], "labels"));
    for (slice, object) in case.slices.iter().enumerate() {
        for endpoint in 0..object["endpoints"].as_array().map_or(0, Vec::len) {
            for field in ["hints", "nodeName", "conditions"] {
                with(&|case| forget(&mut case.slices[slice]["endpoints"][endpoint], field));
            }
        }
    }
    found
}

fn remove(list: &mut Value, index: usize) {
    if let Some(list) = list.as_array_mut() {
        list.remove(index);
    }
}

fn forget(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(field);
    }
}
