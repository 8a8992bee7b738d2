#!/usr/bin/env bash
# Images of databases for the tests, made of this machine's own programs: no registry is asked.
#
#   images.sh postgres|redis|sqlite|mariadb DOCKER_HOST     imports skep-test:NAME, unless it is there
#
# In each: the program with the libraries that `ldd` names and its data files, busybox as the shell, and the environment variables of the
# official image as far as the tests use them. Fails where this machine has no such program.
set -euo pipefail

name=$1 host=$2
docker() { command docker -H "$host" "$@"; }
! docker image inspect "skep-test:$name" >/dev/null 2>&1 || exit 0
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

mkdir -p "$root"/{bin,tmp,etc,proc,sys,dev,run,data,var/lib,lib64}
chmod 1777 "$root/tmp" "$root/run"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh cat ls test rm kill sleep usleep sed awk env echo id mkdir chmod head printf touch; do ln -s busybox "$root/bin/$applet"; done
printf 'root:x:0:0::/:/bin/sh\npostgres:x:70:70::/tmp:/bin/sh\nmysql:x:71:71::/tmp:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\npostgres:x:70:\nmysql:x:71:\n' >"$root/etc/group"

# A program with its libraries, each at its own place.
program() {
    local file
    for file in "$@"; do
        [ -e "$file" ] || { echo "images.sh: there is no $file" >&2; exit 1; }
        cp --parents -L "$file" "$root"
        ldd "$file" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do cp --parents -Lu "$library" "$root"; done
    done
}

case $name in
postgres)
    bin=/usr/lib/postgresql/15/bin
    program $bin/{postgres,initdb,pg_dump,pg_dumpall,psql,pg_isready}
    for file in $bin/*; do [ ! -e "$root$file" ] || ln -s "$file" "$root/bin/${file##*/}"; done
    cp -r --parents /usr/lib/postgresql/15/lib /usr/share/postgresql/15 "$root"
    rm -rf "$root/usr/lib/postgresql/15/lib/bitcode" "$root"/usr/share/postgresql/15/{man,extension/*--*--*}
    mkdir -p "$root/var/lib/postgresql/data" "$root/var/run/postgresql"
    chown -R 70:70 "$root/var/lib/postgresql" "$root/var/run/postgresql"
    cat >"$root/bin/serve" <<'SERVE'
#!/bin/sh
set -e
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}"
export PGDATA
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -U "$POSTGRES_USER" -A "${POSTGRES_HOST_AUTH_METHOD:-trust}" -N --locale=C -E UTF8 >/dev/null
fi
exec postgres -k /var/run/postgresql -h 127.0.0.1 -F
SERVE
    set -- -c 'USER postgres' -c 'ENV PGDATA=/var/lib/postgresql/data'
    ;;
redis)
    program /usr/bin/redis-server /usr/bin/redis-cli
    printf '#!/bin/sh\nexec redis-server --dir /data --save "" ${REDIS_PASSWORD:+--requirepass "$REDIS_PASSWORD"}\n' >"$root/bin/serve"
    set --
    ;;
sqlite)
    program /usr/bin/sqlite3
    printf '#!/bin/sh\nexec sleep 1000000\n' >"$root/bin/serve"
    set --
    ;;
mariadb)
    program /usr/sbin/mariadbd /usr/bin/{mariadb,mariadb-dump}
    cp -r --parents /usr/share/mysql "$root"
    mkdir -p "$root/var/lib/mysql" "$root/run/mysqld"
    chown -R 71:71 "$root/var/lib/mysql" "$root/run/mysqld"
    cat >"$root/bin/serve" <<'SERVE'
#!/bin/sh
set -e
if [ ! -d /var/lib/mysql/mysql ]; then
    mkdir -p /var/lib/mysql/mysql
    {
        echo "CREATE DATABASE IF NOT EXISTS mysql;"
        echo "USE mysql;"
        echo "SET @auth_root_socket=NULL;"
        cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_performance_tables.sql
        cat /usr/share/mysql/mysql_system_tables_data.sql /usr/share/mysql/maria_add_gis_sp_bootstrap.sql
        echo "FLUSH PRIVILEGES;"
        echo "ALTER USER root@localhost IDENTIFIED BY '$(echo "$MYSQL_ROOT_PASSWORD" | sed "s/'/''/g")';"
    } >/tmp/init.sql
    mariadbd --no-defaults --bootstrap --datadir=/var/lib/mysql </tmp/init.sql
fi
exec mariadbd --no-defaults --datadir=/var/lib/mysql --socket=/run/mysqld/mysqld.sock --skip-networking
SERVE
    set -- -c 'USER mysql'
    ;;
*) echo "images.sh: no image is called $name" >&2; exit 2 ;;
esac
chmod +x "$root/bin/serve"
tar -C "$root" -c . | docker import -c 'ENV PATH=/bin:/usr/bin:/usr/sbin' -c 'CMD ["/bin/serve"]' "$@" - "skep-test:$name" >/dev/null
