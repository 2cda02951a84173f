package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// nothing is a value that is not there.
type nothing struct{}

const tolerance = 1e-6

// at is the value at a path of names and indices between dots, or nothing.
func at(value any, path string) any {
	for _, name := range strings.Split(path, ".") {
		switch holder := value.(type) {
		case map[string]any:
			inner, found := holder[name]
			if !found {
				return nothing{}
			}
			value = inner
		case []any:
			index, err := strconv.Atoi(name)
			if err != nil || index < 0 || index >= len(holder) {
				return nothing{}
			}
			value = holder[index]
		default:
			return nothing{}
		}
	}
	return value
}

// operation is the name and the argument of an object with one key that begins with a dollar sign.
func operation(value any) (name string, argument any, is bool) {
	object, isObject := value.(map[string]any)
	if !isObject || len(object) != 1 {
		return "", nil, false
	}
	for name, argument := range object {
		return name, argument, strings.HasPrefix(name, "$")
	}
	return "", nil, false
}

// resolve replaces what stands for a value.
func resolve(value any, facts, values any) any {
	if name, argument, is := operation(value); is {
		switch name {
		case "$fact":
			return at(facts, argument.(string))
		case "$value":
			return at(values, argument.(string))
		case "$repeat":
			parts := argument.([]any)
			return strings.Repeat(parts[0].(string), int(parts[1].(float64)))
		case "$join":
			var text strings.Builder
			for _, part := range argument.([]any) {
				text.WriteString(resolve(part, facts, values).(string))
			}
			return text.String()
		case "$nothing":
			return nothing{}
		}
	}
	switch value := value.(type) {
	case map[string]any:
		resolved := map[string]any{}
		for name, each := range value {
			resolved[name] = resolve(each, facts, values)
		}
		return resolved
	case []any:
		resolved := make([]any, len(value))
		for index, each := range value {
			resolved[index] = resolve(each, facts, values)
		}
		return resolved
	default:
		return value
	}
}

func isZero(value any) bool {
	switch value := value.(type) {
	case nothing:
		return true
	case bool:
		return !value
	case float64:
		return value == 0
	case string:
		return value == ""
	case []any:
		return len(value) == 0
	case map[string]any:
		return len(value) == 0
	default:
		return value == nil
	}
}

// mismatch says where actual is not what is expected, or nothing.
func mismatch(expected, actual any, path string) string {
	if name, argument, is := operation(expected); is {
		return operationMismatch(name, argument, actual, path)
	}
	if _, absent := actual.(nothing); absent {
		if _, is := expected.(map[string]any); is {
			actual = map[string]any{} // whose fields must then all be zero
		} else if isZero(expected) {
			return ""
		}
	}
	differs := fmt.Sprintf("%s: expected %s, got %s", path, shown(expected), shown(actual))
	switch expected := expected.(type) {
	case map[string]any:
		object, is := actual.(map[string]any)
		if !is {
			return differs
		}
		for name, each := range expected {
			var value any = nothing{}
			if found, has := object[name]; has {
				value = found
			}
			if wrong := mismatch(each, value, path+"."+name); wrong != "" {
				return wrong
			}
		}
		return ""
	case []any:
		list, is := actual.([]any)
		if !is || len(list) != len(expected) {
			return differs
		}
		for index, each := range expected {
			if wrong := mismatch(each, list[index], fmt.Sprintf("%s.%d", path, index)); wrong != "" {
				return wrong
			}
		}
		return ""
	case float64:
		if number, is := actual.(float64); is && math.Abs(number-expected) <= tolerance*math.Max(math.Abs(number), math.Abs(expected)) {
			return ""
		}
	default:
		if expected == actual {
			return ""
		}
	}
	return differs
}

func operationMismatch(name string, argument, actual any, path string) string {
	wrong := fmt.Sprintf("%s: expected %s %s, got %s", path, name, shown(argument), shown(actual))
	list, isList := actual.([]any)
	number, isNumber := actual.(float64)
	_, absent := actual.(nothing)
	fits := false
	switch name {
	case "$absent":
		fits = absent
	case "$present":
		fits = !absent && mismatch(argument, actual, path) == ""
	case "$contains":
		text, is := actual.(string)
		fits = is && strings.Contains(text, argument.(string))
	case "$at_least":
		fits = isNumber && number >= argument.(float64)
	case "$at_most":
		fits = isNumber && number <= argument.(float64)
	case "$not":
		fits = mismatch(argument, actual, path) != ""
	case "$all":
		for _, each := range argument.([]any) {
			if inner := mismatch(each, actual, path); inner != "" {
				return inner
			}
		}
		fits = true
	case "$any":
		for _, each := range argument.([]any) {
			fits = fits || mismatch(each, actual, path) == ""
		}
	case "$each":
		for index, each := range list {
			if inner := mismatch(argument, each, fmt.Sprintf("%s.%d", path, index)); inner != "" {
				return inner
			}
		}
		fits = isList || absent
	case "$some":
		for _, each := range list {
			fits = fits || mismatch(argument, each, path) == ""
		}
	case "$count":
		if isList || absent {
			return mismatch(argument, float64(len(list)), path+" (count)")
		}
	case "$joined":
		var text strings.Builder
		for _, each := range list {
			part, _ := each.(string)
			text.WriteString(part)
		}
		return mismatch(argument, text.String(), path+" (joined)")
	default:
		return fmt.Sprintf("%s: this runner does not know %s", path, name)
	}
	if fits {
		return ""
	}
	return wrong
}

func shown(value any) string {
	if _, is := value.(nothing); is {
		return "nothing"
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	if len(text) > 300 {
		return string(text[:300]) + "…"
	}
	return string(text)
}
