#!/usr/bin/env bash
# Shows a topic's messages again, or resets a consumer group so that it reads them again.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/kafka-replay.sh -t TOPIC [-o earliest|latest|N] [-s SERVERS] [-p PARTITION] [-r GROUP]

Without -r it only SHOWS messages and changes nothing:
  earliest (default)  everything, from the beginning; ends at the end of the topic
  N                   everything from offset N on (in every partition, or in that of -p)
  latest              what arrives from now on, until Ctrl-C
One line a message: create time, partition, offset, key, value. Keys and values
are Avro, so bytes that are not text appear as \xNN.

With -r it RESETS the committed offsets of GROUP, so that its members read the
topic again from there when they next start. The group must have no members:
stop the consumer first. The user-api and the post-api may go on running. An
offset is one partition's: -o N needs -p here.

Options
  -t TOPIC      topic, e.g. user-events or post-events (required)
  -o WHERE      earliest, latest or an offset               [default earliest]
  -s SERVERS    Kafka's address    [env KAFKA_BROKERS, default localhost:9092]
  -p PARTITION  this partition only                              [default all]
  -r GROUP      consumer group to reset, e.g. post-service-streams
  -h, --help    this text

To have every user applied again (rows deleted by hand come back, counts stay
right, no row becomes older):
  1. stop the consumer
  2. scripts/kafka-replay.sh -t user-events -r post-service-streams
  3. start the consumer
cdc-consumer keeps its offsets in the database, in the transaction of the rows.
It takes a reset made here as an operator's order and follows it when it starts,
unless "cdc-consumer offsets reset" has moved the same offsets since.

Kafka's own tools do the work. They are taken from PATH (kafka-consumer-groups,
with or without .sh), else from the local stack (./dev kafka), else from the
running container named kafka.

Exit codes: 0 done, 2 wrong usage, 3 no Kafka tools or no broker, 4 the group is
still active, 5 Kafka's tool failed
TEXT
}

GROUP_WAIT_SECONDS=10   # members that are just leaving get this long
SHOW_IDLE_MS=6000       # showing ends when nothing more came for this long

say() { printf 'kafka-replay: %s\n' "$*" >&2; }

die() { # CODE MESSAGE
  say "$2"
  exit "$1"
}

topic='' offset=earliest servers=${KAFKA_BROKERS:-localhost:9092} group='' partition=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    -t | -o | -s | -r | -p)
      [ -n "${2:-}" ] || die 2 "$1 needs a value; see --help"
      case $1 in
        -t) topic=$2 ;; -o) offset=$2 ;; -s) servers=$2 ;; -r) group=$2 ;; -p) partition=$2 ;;
      esac
      shift 2 ;;
    *) die 2 "unknown argument $1; see --help" ;;
  esac
done
[ -n "$topic" ] || die 2 "which topic? Give -t, e.g. -t user-events; see --help"
case $offset in earliest | latest) ;; *[!0-9]*) die 2 "-o takes earliest, latest or an offset, not \"$offset\"" ;; esac
if [ -n "$group" ] && [ -z "$partition" ]; then
  case $offset in *[0-9]) die 2 "each partition counts its own offsets: with -r, -o $offset needs -p PARTITION" ;; esac
fi
case $partition in *[!0-9]*) die 2 "-p takes a partition's number, not \"$partition\"" ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_tools() { # sets tools to path, path.sh, dev or container
  if command -v kafka-consumer-groups >/dev/null 2>&1; then
    tools=path
  elif command -v kafka-consumer-groups.sh >/dev/null 2>&1; then
    tools=path.sh
  elif local_stack_runs; then
    tools=dev
  elif [ -n "$(docker ps --quiet --filter 'name=^kafka$' 2>/dev/null)" ]; then
    tools=container
    # Inside the container the broker is always here, whatever the host calls it.
    servers=localhost:9092
  else
    die 3 "found no Kafka tools: not on PATH, no local stack (start it with ./dev up), no container named kafka"
  fi
}

local_stack_runs() {
  local status
  # Where it was never built it does not run, and ./dev would first install what it needs, and build.
  (cd "$root" && [ -x "${CARGO_TARGET_DIR:-target}/debug/devstack" ]) || return 1
  # Status fails while any process is missing; only the broker matters here.
  status=$("$root/dev" status --json 2>/dev/null) || true
  tr -d ' \n' <<<"$status" | grep -q '"name":"kafka","state":"healthy"'
}

kafka() { # TOOL ARGUMENT...
  local tool=$1
  shift
  set -- --bootstrap-server "$servers" "$@"
  case $tools in
    path) "kafka-$tool" "$@" ;;
    path.sh) "kafka-$tool.sh" "$@" ;;
    dev) "$root/dev" kafka "$tool" "$@" ;;
    container) docker exec kafka "kafka-$tool" "$@" ;;
  esac
}

# Runs a tool whose answer is needed; leaves it in answer. Kafka's tools put some errors on
# standard output and exit 0, so both are read.
ask() { # TOOL ARGUMENT...
  if ! answer=$(kafka "$@" 2>&1); then
    case $answer in
      *TimeoutException* | *"could not be established"* | *"Couldn't resolve"*)
        die 3 "no Kafka broker answers at $servers: $(grep -m1 -E 'Exception|established|resolve' <<<"$answer")" ;;
    esac
    return 1
  fi
}

topic_partitions() { # sets partitions
  ask get-offsets --topic "$topic" || true
  partitions=$(sed -nE "s/^${topic//./\\.}:([0-9]+):[0-9]*\$/\1/p" <<<"$answer")
  if [ -z "$partitions" ]; then
    die 5 "topic $topic was not found at $servers (topics are created by the connectors): $(head -n 1 <<<"$answer")"
  fi
  if [ -n "$partition" ]; then
    grep -qx "$partition" <<<"$partitions" || die 2 "topic $topic has no partition $partition, only ${partitions//$'\n'/, }"
    partitions=$partition
  fi
}

# BytesDeserializer keeps one message on one line; UTF-8 text becomes readable again where perl is.
# The option's new name is unknown to Kafka before 4.2, so its remark on the old one is dropped.
readable() {
  if command -v perl >/dev/null 2>&1; then
    perl -ne 'BEGIN { $| = 1 } next if /^Option --property is deprecated/; s/((?:\\x[89A-F][0-9A-F])+)/my $t = pack("H*", $1 =~ s{\\x}{}gr); utf8::decode(my $u = $t) ? $t : $1/ge; print'
  else
    cat
  fi
}

consume() { # ARGUMENT...
  local bytes=org.apache.kafka.common.serialization.BytesDeserializer
  # The tool reports the end of an idle topic as a timeout: expected here, so its noise is dropped.
  kafka console-consumer --topic "$topic" \
    --property print.timestamp=true --property print.partition=true \
    --property print.offset=true --property print.key=true \
    --property "key.deserializer=$bytes" --property "value.deserializer=$bytes" "$@" \
    2> >(grep -vE 'TimeoutException|Error processing message|^[[:space:]]+at |^WARNING: |rebalance protocol|^$' >&2) | readable
}

show() {
  topic_partitions
  local each
  if [ "$offset" = earliest ] && [ -z "$partition" ]; then
    consume --from-beginning --timeout-ms "$SHOW_IDLE_MS"
  elif [ "$offset" = latest ] && [ -z "$partition" ]; then
    say "showing what arrives in $topic from now on; Ctrl-C ends"
    consume
  elif [ "$offset" = latest ]; then
    say "showing what arrives in $topic partition $partition from now on; Ctrl-C ends"
    consume --partition "$partition" --offset latest
  else
    for each in $partitions; do
      consume --partition "$each" --offset "$offset" --timeout-ms "$SHOW_IDLE_MS"
    done
  fi
  say "shown only; to have a consumer group read it again, add -r GROUP"
}

group_state() { # sets state; an unknown group has no members either
  if ask consumer-groups --describe --group "$group" --state; then
    state=$(grep -oE '\b(Stable|Empty|Dead|PreparingRebalance|CompletingRebalance|Assigning|Reconciling)\b' <<<"$answer" | head -n 1) || true
  else
    state=
  fi
  case $answer in *'not found'* | *'does not exist'*) state=Empty ;; esac
  [ -n "$state" ] || die 5 "could not learn the state of group $group: $(grep -m1 -E 'Error|Exception' <<<"$answer" || head -n 3 <<<"$answer")"
}

wait_until_inactive() {
  local deadline=$((SECONDS + GROUP_WAIT_SECONDS)) told=''
  while group_state; [ "$state" != Empty ] && [ "$state" != Dead ]; do
    if [ $SECONDS -ge $deadline ]; then
      ask consumer-groups --describe --group "$group" --members || true
      grep -F "$group" <<<"$answer" | sed 's/^/  /' >&2 || true
      die 4 "group $group is still active ($state). Stop its members above first ($stop_hint), then run this again; nothing was changed"
    fi
    [ -n "$told" ] || say "group $group is $state; waiting up to $GROUP_WAIT_SECONDS s for its members to leave"
    told=yes
    sleep 1
  done
}

reset_group() {
  topic_partitions
  wait_until_inactive
  local where scope=$topic
  case $offset in
    earliest) where=(--to-earliest) ;;
    latest)
      say "warning: -o latest SKIPS every change the group has not read yet; the views will lack them until a replay"
      where=(--to-latest) ;;
    *)
      say "warning: if the group is not that far, -o $offset SKIPS the changes before it; the views will lack them until a replay"
      where=(--to-offset "$offset") ;;
  esac
  [ -z "$partition" ] || scope=$topic:$partition
  if ! ask consumer-groups --group "$group" --topic "$scope" --reset-offsets "${where[@]}" --execute ||
    ! grep -qE "^$group +$topic " <<<"$answer"; then
    die 5 "Kafka refused the reset of group $group: $(grep -m1 -E 'Error|Exception' <<<"$answer" || printf '%s' "$answer")"
  fi
  # Kafka puts an offset outside the log at its end or start, and only warns.
  grep -E '^GROUP|WARN|^'"$group" <<<"$answer"
  say "group $group reads $scope from there when it next starts ($start_hint)"
}

find_tools
case $tools in
  container)
    stop_hint='docker compose stop post-service-kafka' start_hint='docker compose start post-service-kafka' ;;
  *)
    stop_hint='for the local stack: ./dev stop cdc-consumer' start_hint='for the local stack: ./dev start cdc-consumer' ;;
esac
if [ -n "$group" ]; then reset_group; else show; fi
