#!/usr/bin/env bash
# Registers the Debezium connectors of this directory and waits until they run.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: connectors/register.sh [--watch] [--url URL] [--timeout SECONDS] [NAME ...]

Registers connectors (every *.json beside this script, or the NAMEs given) with
Kafka Connect, then waits until each connector and its task are RUNNING.
It is safe to run again: an unchanged connector is left as it is, a changed one
is updated, and one that has failed is restarted once.

Options
  --watch            do not end, but restart what fails later as well: Connect
                     itself never does. After a restart that did not help, the
                     next one waits twice as long, a minute at most
  --url URL          Connect's REST address       [env CONNECT_URL, default http://127.0.0.1:8083]
  --timeout SECONDS  how long to wait in all      [env REGISTER_TIMEOUT_SECONDS, default 120]
  -h, --help         this text

Environment
  CONNECT_SECRETS_FILE  (required) path of the secrets file AS THE CONNECT WORKER SEES IT.
      The worker must read it through its file config provider:
        config.providers=file
        config.providers.file.class=org.apache.kafka.common.config.provider.FileConfigProvider
        config.providers.file.param.allowed.paths=<the file's directory>
      and the file must hold these keys:
        database.hostname, database.port, user.database.password,
        post.database.password, registry.url
      Connect stores and shows only the reference to a key, never its value.

Exit codes
  0  every connector and task is RUNNING
  2  wrong usage: an option, a connector's name, CONNECT_SECRETS_FILE
  3  Connect could not be reached in time
  4  Connect refused a connector; its message is printed
  5  a connector or task was not RUNNING in time
  6  a task failed; its stack trace is printed
TEXT
}

say() { printf 'register: %s\n' "$*"; }

die() { # CODE MESSAGE
  printf 'register: %s\n' "$2" >&2
  exit "$1"
}

directory=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
url=${CONNECT_URL:-http://127.0.0.1:8083}
timeout_seconds=${REGISTER_TIMEOUT_SECONDS:-120}
watch=
names=()

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --watch) watch=yes; shift ;;
    --url | --timeout)
      [ $# -ge 2 ] || die 2 "$1 needs a value; see --help"
      if [ "$1" = --url ]; then url=$2; else timeout_seconds=$2; fi
      shift 2 ;;
    -*) die 2 "unknown option $1; see --help" ;;
    *) names+=("${1%.json}"); shift ;;
  esac
done
url=${url%/}
case $timeout_seconds in '' | *[!0-9]*) die 2 "--timeout takes whole seconds, not \"$timeout_seconds\"" ;; esac

secrets_file=${CONNECT_SECRETS_FILE:-}
[ -n "$secrets_file" ] || die 2 "CONNECT_SECRETS_FILE is not set; see --help"
# The path becomes part of Connect's own \${file:PATH:KEY} syntax and of JSON.
case $secrets_file in
  *[!A-Za-z0-9_./-]*) die 2 "CONNECT_SECRETS_FILE may hold letters, digits and _ . / - only: $secrets_file" ;;
esac

if [ ${#names[@]} -eq 0 ]; then
  for file in "$directory"/*.json; do
    file=${file##*/}
    names+=("${file%.json}")
  done
fi
for name in "${names[@]}"; do
  [ -f "$directory/$name.json" ] || die 2 "there is no connector \"$name\" in $directory"
done

# Between two looks, and before the second restart of a failed connector.
watch_seconds=5
watch_seconds_max=60
deadline=$((SECONDS + timeout_seconds))
http_status=000
body=

# Calls Connect; leaves http_status (000 = no answer) and body.
call() { # METHOD PATH [JSON]
  local answer
  if [ $# -eq 3 ]; then
    answer=$(printf '%s' "$3" | curl -sS --max-time 30 -X "$1" -H 'Content-Type: application/json' \
      --data-binary @- -w '\n%{http_code}' "$url$2" 2>&1) || true
  else
    answer=$(curl -sS --max-time 30 -X "$1" -w '\n%{http_code}' "$url$2" 2>&1) || true
  fi
  http_status=${answer##*$'\n'}
  body=${answer%$'\n'*}
}

# A JSON string's content for a person: the first value of KEY in body, unescaped.
text_of() { # KEY
  local value
  value=$(printf '%s' "$body" | tr '\n' ' ' | sed -nE 's/.*"'"$1"'":"(([^"\\]|\\.)*)".*/\1/p')
  value=${value//\\\"/\"}
  printf '%b\n' "${value:-$body}"
}

wait_for_connect() {
  local told=
  while :; do
    call GET /connector-plugins
    [ "$http_status" = 200 ] && break
    if [ $SECONDS -ge $deadline ]; then
      die 3 "no Kafka Connect at $url within $timeout_seconds s (HTTP $http_status: ${body:0:300})"
    fi
    [ -n "$told" ] || say "waiting for Kafka Connect at $url (HTTP $http_status)"
    told=yes
    sleep 0.5
  done
  case $body in
    *io.debezium.connector.postgresql.PostgresConnector*) ;;
    *) die 4 "the Connect worker at $url has no Debezium PostgreSQL connector in its plugin.path" ;;
  esac
}

# Leaves in polls_needed how often RUNNING must be seen: after an update the old
# task still says RUNNING for a moment.
put() { # NAME
  local json
  json=$(<"$directory/$1.json")
  json=${json//@SECRETS_FILE@/$secrets_file}
  while :; do
    call PUT "/connectors/$1/config" "$json"
    case $http_status in
      201) say "$1: created"; polls_needed=2; return ;;
      200) say "$1: already there, configuration set"; polls_needed=3; return ;;
      # 409: the workers are rebalancing. 404, 5xx and 000: starting or gone for a moment;
      # a worker that starts answers 404 to everything before it has its REST resources.
      404 | 409 | 5* | 000)
        [ $SECONDS -lt $deadline ] || die 3 "$1: Connect did not take the configuration in time (HTTP $http_status: $(text_of message))"
        sleep 0.5 ;;
      *) die 4 "$1: Connect refused the configuration (HTTP $http_status): $(text_of message)" ;;
    esac
  done
}

# Leaves in states the connector's state, then each task's, from
# {"connector":{"state":"RUNNING",..},"tasks":[{"id":0,"state":"RUNNING",..}]
look() { # NAME
  call GET "/connectors/$1/status"
  states=$(printf '%s' "$body" | grep -oE '("connector":\{|"id":[0-9]+,)"state":"[A-Z_]+"' | sed -E 's/.*"state":"([A-Z_]+)"/\1/' | tr '\n' ' ') || true
}

restart_failed() { # NAME
  call POST "/connectors/$1/restart?includeTasks=true&onlyFailed=true"
}

wait_until_running() { # NAME
  local name=$1 seen=0 restarted=''
  while :; do
    look "$name"
    case $states in
      'RUNNING RUNNING '*)
        case $states in *FAILED* | *UNASSIGNED* | *PAUSED* | *STOPPED* | *RESTARTING*) seen=0 ;; *) seen=$((seen + 1)) ;; esac
        if [ "$seen" -ge "$polls_needed" ]; then
          say "$name: connector and task are RUNNING"
          return
        fi ;;
      *) seen=0 ;;
    esac
    case $states in
      *FAILED*)
        [ -z "$restarted" ] || die 6 "$name: FAILED also after a restart (states: ${states% }). Its trace:"$'\n'"$(text_of trace)"
        say "$name: FAILED ($(text_of trace | head -n 1)); restarting it once"
        restarted=yes
        restart_failed "$name"
        sleep 1 ;;
      *PAUSED* | *STOPPED*)
        die 5 "$name: paused or stopped by an operator (states: ${states% }); resume it: curl -X PUT $url/connectors/$name/resume" ;;
    esac
    [ $SECONDS -lt $deadline ] || die 5 "$name: not RUNNING within $timeout_seconds s (states: ${states:-none yet }HTTP $http_status)"
    sleep 0.5
  done
}

# Sleeps so that a signal ends the script at once.
doze() { # SECONDS
  sleep "$1" &
  wait $!
}

# Restarts what has FAILED, for ever; says what changes. Per connector, in the
# order of names: the states seen last, the pause after the next restart, when
# the next restart may be.
watch_over() {
  local known=() pauses=() due=() index name
  for index in "${!names[@]}"; do known+=(''); pauses+=("$watch_seconds"); due+=(0); done
  say "watching ${names[*]}"
  while :; do
    for index in "${!names[@]}"; do
      name=${names[index]}
      look "$name"
      [ -n "$states" ] || states="no answer, HTTP $http_status"
      case $states in
        *FAILED*)
          if [ $SECONDS -ge "${due[index]}" ]; then
            say "$name: FAILED ($(text_of trace | head -n 1)); restarting it"
            restart_failed "$name"
            due[index]=$((SECONDS + pauses[index]))
            pauses[index]=$((pauses[index] * 2 > watch_seconds_max ? watch_seconds_max : pauses[index] * 2))
          fi ;;
        *)
          [ "$states" = "${known[index]}" ] || say "$name: ${states% }"
          # It held until the next restart would have been due.
          [ $SECONDS -lt "${due[index]}" ] || pauses[index]=$watch_seconds ;;
      esac
      known[index]=$states
    done
    doze "$watch_seconds"
  done
}

running=()
wait_for_connect
for name in "${names[@]}"; do put "$name"; running+=("$name:$polls_needed"); done
if [ -n "$watch" ]; then
  trap 'exit 0' INT TERM
  watch_over
fi
for entry in "${running[@]}"; do
  polls_needed=${entry##*:}
  wait_until_running "${entry%:*}"
done
