#!/usr/bin/env bash
# Starts a service beside Ray on a host of a cluster, once, and restarts it whenever it ends:
#     services.sh head    the MLflow server, on 127.0.0.1:5000
#     services.sh spot    drains this node before EC2 reclaims a spot machine
# Both log to ~/sweep-services/*.log.
#
# With SWEEP_MLFLOW_HOST=ADDRESS, MLflow listens at that address for other hosts and asks for a user
# and a password. The password of "admin" is in ~/sweep-services/mlflow-password. Sweeps on this host
# read both from ~/sweep-services/env, which ~/.sweep-env sources.
set -euo pipefail
home=~/sweep-services
mkdir -p "$home"
chmod 700 "$home"

keep_running() { # NAME COMMAND...
  local name=$1
  shift
  # The last of these processes releases the lock, so a second start does nothing.
  setsid flock --nonblock "$home/$name.lock" bash -c 'while :; do "$@"; sleep 2; done' - "$@" \
    </dev/null >>"$home/$name.log" 2>&1 &
}

case ${1:-} in
head)
  host=${SWEEP_MLFLOW_HOST:-127.0.0.1}
  names="localhost,localhost:*,127.0.0.1,127.0.0.1:*"
  options=()
  rm -f "$home/env"
  if [ "$host" != 127.0.0.1 ]; then
    # Every name and address of this machine; MLflow needs each with and without a port.
    for name in "$host" $(hostname) $(hostname -f 2>/dev/null || true) $(hostname -I 2>/dev/null || true); do
      names="$names,$name,$name:*"
    done
    password=$home/mlflow-password
    [ -s "$password" ] || (umask 077 && python -c 'import secrets; print(secrets.token_urlsafe(24))' >"$password")
    export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
    MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$password")
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(python -c 'import secrets; print(secrets.token_hex(32))')
    options+=(--app-name basic-auth)
    (umask 077 && echo "export MLFLOW_TRACKING_URI=http://$host:5000 MLFLOW_TRACKING_USERNAME=admin" \
      "MLFLOW_TRACKING_PASSWORD=$MLFLOW_AUTH_ADMIN_PASSWORD" >"$home/env")
  fi
  export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # saves eight processes that no sweep uses
  cd "$home" # where basic-auth keeps its users
  keep_running mlflow mlflow server --host "$host" --port 5000 --workers 1 --allowed-hosts "$names" \
    --backend-store-uri "sqlite:///$home/mlflow.db" --artifacts-destination "$home/mlflow-artifacts" \
    "${options[@]}"
  ;;
spot)
  cd "$(dirname "$0")/.."
  keep_running spot python -m orchestrator.spot --stay
  ;;
*)
  echo "Usage: services.sh head|spot" >&2
  exit 2
  ;;
esac
