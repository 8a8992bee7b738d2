//! A directory of one's own: OpenLDAP's slapd with TLS under an authority of its own, the memberOf overlay, and some people and groups.
//! Several may run side by side.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use skep::config;
use skep::config::ldap::Server;

use crate::harness::free_port;
use crate::pebble::{Process, listening};

/// Below it is everything.
pub const SUFFIX: &str = "dc=example,dc=org";
/// Who searches, with the password in [`Slapd::password_file`].
pub const READER: &str = "cn=reader,dc=example,dc=org";
const ADMIN: &str = "cn=admin,dc=example,dc=org";

/// People: ada and bob, whose passwords are `ada-secret` and `bob-secret`; ada is in `teedy` (groupOfNames), `Human  Resources`
/// (groupOfUniqueNames), `ops` (posixGroup, by name) and `staff` (posixGroup, by number); `teedy` is in `everybody`; bob is in `sismics`.
const PEOPLE: &str = "\
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: groups

dn: ou=policies,dc=example,dc=org
objectClass: organizationalUnit
ou: policies

dn: cn=default,ou=policies,dc=example,dc=org
objectClass: device
objectClass: pwdPolicy
cn: default
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 3

dn: cn=reader,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: reader-secret

dn: uid=ada,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
objectClass: posixAccount
objectClass: shadowAccount
uid: ada
cn: Ada Lovelace
sn: Lovelace
mail: ada@example.org
uidNumber: 10001
gidNumber: 20001
homeDirectory: /home/ada
userPassword: ada-secret

dn: uid=bob,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: bob
cn: Bob (B) * \"quoted\"
sn: B
displayName: Bob
userPassword: bob-secret

dn: cn=teedy,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: teedy
member: uid=ada,ou=people,dc=example,dc=org

dn: cn=everybody,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: everybody
member: cn=teedy,ou=groups,dc=example,dc=org

dn: cn=sismics,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: sismics
member: uid=bob,ou=people,dc=example,dc=org

dn: cn=Human  Resources,ou=groups,dc=example,dc=org
objectClass: groupOfUniqueNames
cn: Human  Resources
uniqueMember: uid=ada,ou=people,dc=example,dc=org

dn: cn=ops,ou=groups,dc=example,dc=org
objectClass: posixGroup
cn: ops
gidNumber: 20007
memberUid: ada

dn: cn=staff,ou=groups,dc=example,dc=org
objectClass: posixGroup
cn: staff
gidNumber: 20001
";

/// Is there an IPv6 loopback, at which directories listen too?
pub fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

/// What differs from directory to directory.
#[derive(Clone, Debug)]
pub struct Options {
    /// In the certificate; empty: the server speaks no TLS.
    pub names: Vec<&'static str>,
    /// More lines of slapd.conf, before the database, and of the database.
    pub global: &'static str,
    pub database: &'static str,
    /// More entries.
    pub more: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { names: vec!["localhost", "127.0.0.1", "::1"], global: "", database: "", more: String::new() }
    }
}

/// A running directory server.
pub struct Slapd {
    pub directory: tempfile::TempDir,
    /// `ldap://` and `ldaps://`.
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    encrypted: bool,
    process: Option<Process>,
}

impl Slapd {
    pub async fn start() -> Slapd {
        Slapd::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Slapd {
        let directory = tempfile::tempdir().unwrap();
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (plain, tls, encrypted) = (at(free_port()), at(free_port()), !options.names.is_empty());
        let mut slapd = Slapd { directory, plain, tls, encrypted, process: None };
        slapd.write(&options);
        slapd.run().await;
        slapd.add(PEOPLE);
        if !options.more.is_empty() {
            slapd.add(&options.more);
        }
        slapd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, options: &Options) {
        let write = |name: &str, text: &str| std::fs::write(self.path(name), text).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Each is another authority, by its name too.
        params.distinguished_name.push(DnType::CommonName, format!("authority of {}", self.tls));
        let key = KeyPair::generate().unwrap();
        write("ca.pem", &params.self_signed(&key).unwrap().pem());
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(options.names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        write("cert.pem", &params.signed_by(&key, &issuer).unwrap().pem());
        write("key.pem", &key.serialize_pem());
        write("reader.txt", "reader-secret\n");
        std::fs::create_dir(self.path("data")).unwrap();
        let place = self.directory.path().display();
        let tls =
            format!("TLSCACertificateFile {place}/ca.pem\nTLSCertificateFile {place}/cert.pem\nTLSCertificateKeyFile {place}/key.pem\n");
        let tls = if self.encrypted { tls } else { String::new() };
        let schemas = ["core", "cosine", "nis", "inetorgperson"].map(|name| format!("include /etc/ldap/schema/{name}.schema\n")).concat();
        let Options { global, database, .. } = options;
        let conf = format!(
            "{schemas}modulepath /usr/lib/ldap\nmoduleload back_mdb\nmoduleload memberof\nmoduleload refint\nmoduleload ppolicy\n\
             pidfile {place}/slapd.pid\n{tls}{global}\n\
             database mdb\nsuffix {SUFFIX}\nrootdn {ADMIN}\nrootpw admin\ndirectory {place}/data\nmaxsize 268435456\ndbnosync\n\
             index objectClass,uid,cn,mail,member,memberUid eq\n\
             limits dn.exact={READER} size.soft=500 size.hard=500 size.prtotal=unlimited\n\
             overlay memberof\nmemberof-group-oc groupOfNames\nmemberof-member-ad member\nmemberof-memberof-ad memberOf\nmemberof-refint TRUE\n\
             overlay refint\nrefint_attributes member memberOf\noverlay ppolicy\nppolicy_default cn=default,ou=policies,{SUFFIX}\n{database}\n\
             access to attrs=userPassword by self write by anonymous auth by * none\n\
             access to * by dn.exact={READER} read by self read by * none\n"
        );
        write("slapd.conf", &conf);
    }

    /// Starts it again with what it knew, at the same ports.
    pub async fn run(&mut self) {
        self.process = None;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("slapd.log")).unwrap();
        let (plain, mut tls) = (format!("ldap://{}", self.plain), format!("ldaps://{}", self.tls));
        if has_ipv6() {
            tls = format!("{tls} ldaps://[::1]:{}", self.tls.port());
        }
        let urls = if self.encrypted { format!("{plain} {tls}") } else { plain };
        let mut command = Command::new(
            ["/usr/sbin/slapd", "/usr/local/libexec/slapd"].into_iter().find(|path| PathBuf::from(path).exists()).unwrap_or("slapd"),
        );
        command.arg("-f").arg(self.path("slapd.conf")).args(["-h", &urls, "-d", "stats"]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child =
            child.unwrap_or_else(|error| panic!("slapd: {error}; `./dev test` installs it, as does `apt-get install slapd ldap-utils`"));
        self.process = Some(Process(child));
        listening(self.plain).await;
    }

    /// Ends it at once, with all its connections.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it as an administrator does.
    pub fn stop(&mut self) {
        self.signal("TERM");
        if let Some(Process(child)) = &mut self.process {
            child.wait().unwrap();
        }
        self.process = None;
    }

    /// It takes connections, and answers nothing.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("it runs").0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Adds entries, given as LDIF.
    pub fn add(&self, ldif: &str) {
        self.tell("ldapadd", ldif);
    }

    /// Changes entries, given as LDIF with `changetype`.
    pub fn modify(&self, ldif: &str) {
        self.tell("ldapmodify", ldif);
    }

    /// Takes `user` (an uid) out of `group` (a groupOfNames).
    pub fn leave(&self, user: &str, group: &str) {
        self.modify(&format!(
            "dn: cn={group},ou=groups,{SUFFIX}\nchangetype: modify\nadd: member\nmember: cn=nobody\n-\ndelete: member\nmember: uid={user},ou=people,{SUFFIX}\n"
        ));
    }

    /// Changes one attribute of `user`.
    pub fn replace(&self, user: &str, attribute: &str, value: &str) {
        self.modify(&format!("dn: uid={user},ou=people,{SUFFIX}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"));
    }

    fn tell(&self, program: &str, ldif: &str) {
        let file = self.path("change.ldif");
        std::fs::write(&file, ldif).unwrap();
        let url = format!("ldap://{}", self.plain);
        let mut command = Command::new(program);
        command.args(["-x", "-H", &url, "-D", ADMIN, "-w", "admin", "-f"]).arg(&file);
        // It is about what is told, not about who is told.
        command.args(self.encrypted.then_some("-ZZ")).env("LDAPTLS_REQCERT", "never");
        let done = command.output();
        let done =
            done.unwrap_or_else(|error| panic!("{program}: {error}; `./dev test` installs it, as does `apt-get install ldap-utils`"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// What it says that it was asked: `BIND dn="..."`, `SRCH base="..."`.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("slapd.log")).unwrap()).into_owned()
    }

    pub fn password_file(&self) -> PathBuf {
        self.path("reader.txt")
    }

    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file of its own.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// As Skep is configured for it: over `ldaps://`, with the service account.
    pub fn config(&self) -> config::Ldap {
        Slapd::configs(&[self])
    }

    /// As it is for several of them, in this order.
    pub fn configs(all: &[&Slapd]) -> config::Ldap {
        let pem: String = all.iter().map(|slapd| std::fs::read_to_string(slapd.ca_file()).unwrap()).collect();
        let server = |slapd: &&Slapd| Server { host: "127.0.0.1".to_owned(), port: slapd.tls.port(), tls: true };
        config::Ldap {
            servers: all.iter().map(server).collect(),
            ca: Some(all[0].file("all.pem", &pem)),
            bind_dn: Some(READER.to_owned()),
            bind_password_file: Some(all[0].password_file()),
            user_base: Some(format!("ou=people,{SUFFIX}")),
            group_base: Some(format!("ou=groups,{SUFFIX}")),
            request_timeout: Duration::from_secs(5),
            ..config::Ldap::default()
        }
    }

    /// The lines of `skep.toml` for the same.
    pub fn section(&self) -> String {
        format!(
            "[ldap]\nservers = [\"ldaps://{}\"]\nca = \"{}\"\nbind-dn = \"{READER}\"\nbind-password-file = \"{}\"\nuser-base = \"ou=people,{SUFFIX}\"\ngroup-base = \"ou=groups,{SUFFIX}\"\n",
            self.tls,
            self.ca_file().display(),
            self.password_file().display()
        )
    }
}
