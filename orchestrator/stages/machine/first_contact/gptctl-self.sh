#!/bin/sh
# gptctl-self: a timer that powers this machine off. Its launch said that a machine which is powered off is terminated,
# so the timer ends the bill: without a key, and with nobody there. Put here by gptctl at the first boot.
#
#   gptctl-self boot RENTAL SECONDS   at every boot: arms what was left when the timer was set last, else SECONDS
#   gptctl-self in RENTAL SECONDS     sets the timer anew, sooner or later; refused for another rental than the boot's
#   gptctl-self now RENTAL            powers off
#   gptctl-self start RENTAL USER PROGRAM...   what to start at the next boots
#   gptctl-self left                  prints "RENTAL KIND SECONDS"; SECONDS is "-" when no timer runs
#
# A systemd timer where systemd runs; else `shutdown -P +MINUTES`; else a sleeping shell. The programs that it will call
# are looked up once, at the first boot: should this machine's own be gone later, none of another machine is called.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
state=$here/../lib/gptctl-self
units=/etc/systemd/system
rental='' systemctl='' shutdown='' poweroff='' first=0
[ -r "$state/settings" ] && . "$state/settings"

fail() { echo "gptctl-self: $*" >&2; exit 1; }
uptime_s() { read -r up rest < /proc/uptime; echo "${up%%.*}"; }
# Absolute or nothing: builtins and functions are no programs.
path_of() { case $(command -v "$1") in /*) command -v "$1" ;; esac; }
whole() { case $1 in ''|*[!0-9]*) fail "no number of seconds: $1" ;; esac; }
ours() { [ -n "$rental" ] && [ "$1" = "$rental" ] || fail "this machine's timer is of rental '$rental', not of '$1'"; }

systemd_runs() {
    [ -n "$systemctl" ] || return 1
    case $("$systemctl" is-system-running 2>/dev/null) in
        initializing|starting|running|degraded|maintenance|stopping) return 0 ;;
    esac
    return 1
}

put() { cat > "$1.new" && mv "$1.new" "$1"; }

arm() {
    # Written first: should the machine reboot now, this is what its boot arms.
    echo "$1 $(date +%s)" | put "$state/left"
    if systemd_runs; then arm_systemd "$1"; else arm_process "$1"; fi
}

arm_systemd() {
    put "$units/gptctl-self.service" <<END
[Unit]
Description=Power off: the end of gptctl's rental $rental
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=$systemctl poweroff
END
    # No default dependencies: it runs from the earliest boot on, whatever else hangs.
    put "$units/gptctl-self.timer" <<END
[Unit]
Description=When gptctl's rental $rental ends
DefaultDependencies=no
[Timer]
OnActiveSec=$1
AccuracySec=1s
[Install]
WantedBy=timers.target
END
    "$systemctl" daemon-reload && "$systemctl" --quiet enable gptctl-self.timer && "$systemctl" restart gptctl-self.timer
}

# Without systemd a process waits. The new one is there before the old one goes, but of `shutdown` there can be one only.
arm_process() {
    old=$(process)
    minutes=$(($1 / 60))
    if [ -n "$shutdown" ] && [ "$minutes" -ge 2 ]; then
        [ -n "$old" ] && "$shutdown" -c > /dev/null 2>&1
        nohup "$shutdown" -P "+$minutes" > /dev/null 2>&1 < /dev/null &
        kind=shutdown
    else
        nohup sh -c 'sleep "$1"; "$2" -P now || "$3"' gptctl-self "$1" "$shutdown" "$poweroff" > /dev/null 2>&1 < /dev/null &
        kind=sh
    fi
    echo "$! $(started $!) $(uptime_s) $1 $kind" | put "$state/process"
    [ -z "$old" ] || kill "$old" 2> /dev/null
    return 0
}

# When it was started, in the kernel's ticks; nothing for one that is gone or a zombie.
started() { sed -n 's/^.*) [^Z] //p' "/proc/$1/stat" 2> /dev/null | cut -d' ' -f19; }

# The pid of the process that waits, if it still does.
process() {
    [ -r "$state/process" ] || return 0
    read -r pid begun rest < "$state/process"
    [ -n "$begun" ] && [ "$(started "$pid")" = "$begun" ] && echo "$pid"
}

left() {
    if systemd_runs; then
        kind=systemd seconds=-
        shown=$("$systemctl" show gptctl-self.timer -p ActiveState -p ActiveEnterTimestampMonotonic)
        case $shown in
            *ActiveState=active*)
                since=${shown##*ActiveEnterTimestampMonotonic=} since=${since%%[!0-9]*}
                whole=$(sed -n 's/^OnActiveSec=//p' "$units/gptctl-self.timer")
                seconds=$((whole - $(uptime_s) + since / 1000000)) ;;
        esac
    elif [ -n "$(process)" ]; then
        read -r pid begun since whole kind < "$state/process"
        seconds=$((since + whole - $(uptime_s)))
    else
        kind=none seconds=-
    fi
    echo "$rental $kind $seconds"
}

boot() {
    if [ "$rental" != "$1" ]; then
        rm -rf "$state" && mkdir -p "$state" || fail "cannot write $state"
        rental=$1 first=$2
        systemctl=$(path_of systemctl) shutdown=$(path_of shutdown) poweroff=$(path_of poweroff)
        put "$state/settings" <<END
rental='$rental' first=$first
systemctl='$systemctl' shutdown='$shutdown' poweroff='$poweroff'
END
    fi
    arm "$(left_at_boot)" || fail "the timer cannot be armed"
    [ -r "$state/start" ] && nohup sh "$state/start" > /dev/null 2>&1 < /dev/null &
    return 0
}

# What was left, less the time since then, by this machine's own clock. A clock that jumped takes nothing away.
left_at_boot() {
    [ -r "$state/left" ] || { echo "$first"; return; }
    read -r seconds at < "$state/left"
    since=$(($(date +%s) - at))
    [ "$since" -ge 0 ] && [ "$since" -lt 604800 ] && seconds=$((seconds - since))
    [ "$seconds" -ge 60 ] || seconds=60
    echo "$seconds"
}

start() {
    user=$1; shift
    words=''
    for word in "$@"; do words="$words '$word'"; done
    if [ "$user" = "$(id -un)" ]; then echo "exec$words"; else echo "exec su -s /bin/sh $user -c \"exec$words\""; fi | put "$state/start"
}

power_off() {
    if systemd_runs; then exec "$systemctl" poweroff; fi
    [ -n "$shutdown" ] && "$shutdown" -P now || "$poweroff"
}

case ${1:-} in
    boot) whole "$3"; boot "$2" "$3" ;;
    in) whole "$3"; ours "$2"; arm "$3" ;;
    now) ours "$2"; power_off ;;
    start) ours "$2"; shift 2; start "$@" ;;
    left) left ;;
    *) fail "boot, in, now, start or left" ;;
esac
